#include "train/workbench/bench_diff.h"

#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/units.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using nlohmann::json;

struct Saved {
  json machine;
  std::vector<std::string> order;  // names of rows, as they come
  std::map<std::string, json> rows;
};

// "attention window=512, T 2048"; the rows of a GPU have their shape in the name.
std::string name_of_row(const json& row) {
  const std::string name = row.value("name", "");
  const auto length = row.find("T");
  return length != row.end() && length->is_number() ? concat(name, ", T ", length->dump()) : name;
}

Saved read_saved(const std::string& path) {
  Saved s;
  std::istringstream in(read_file(path));
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    const json row = json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool named = row.is_object() && row.contains("name") && row["name"].is_string();
    require(named, path, ":", number,
            ": is no line of `weft bench --json`, expected an object with "
            "a \"name\"");
    if (row["name"] == "machine") {
      s.machine = row;
      continue;
    }
    const std::string name = name_of_row(row);
    if (s.rows.count(name) == 0) s.order.push_back(name);
    s.rows[name] = row;  // of a row that is there twice the last counts
  }
  require(!s.rows.empty(), path, ": holds no row of `weft bench --json`");
  return s;
}

// Times and memory that were measured; ratios, and what the machine would need at least, follow
// from others.
bool is_measured(const std::string& key) {
  const bool derived = key.rfind("least", 0) == 0 || key.rfind("peer", 0) == 0;
  return !derived && (key.ends_with("_ms") || key.ends_with("_bytes"));
}

struct Change {
  std::string row, measure;
  double before = 0, after = 0;
};

std::vector<Change> changes_of(const Saved& a, const Saved& b) {
  std::vector<Change> all;
  for (const std::string& name : a.order) {
    const auto other = b.rows.find(name);
    if (other == b.rows.end()) continue;
    for (const auto& [key, value] : a.rows.at(name).items()) {
      const auto after = other->second.find(key);
      if (!is_measured(key) || after == other->second.end() || !value.is_number() ||
          !after->is_number() || value.get<double>() <= 0)
        continue;
      all.push_back({name, key, value.get<double>(), after->get<double>()});
    }
  }
  return all;
}

void tell_alone(const Saved& a, const Saved& b, const std::string& where, std::ostream& out) {
  for (const std::string& name : a.order)
    if (b.rows.count(name) == 0) out << name << ": in " << where << " alone\n";
}

void print_text(const std::vector<Change>& all, std::ostream& out) {
  std::vector<std::vector<std::string>> lines;
  for (const Change& c : all) {
    const bool bytes = c.measure.ends_with("_bytes");
    const auto text = [&](double v) { return bytes ? bytes_text(v) : number_text("%.3f", v); };
    lines.push_back(
        {c.row, c.measure, text(c.before), text(c.after), number_text("%.3f", c.after / c.before)});
  }
  print_table(out, {"operation", "measure", "before", "after", "after / before"}, lines);
}

}  // namespace

int run_bench_diff(const std::string& before, const std::string& after, bool json_lines,
                   std::ostream& out) {
  const Saved a = read_saved(before), b = read_saved(after);
  const std::vector<Change> all = changes_of(a, b);
  require(!all.empty(), before, " and ", after, ": no row of one meets a row of the other");
  if (json_lines) {
    for (const Change& c : all)
      out << json_line({{"name", c.row},
                        {"measure", c.measure},
                        {"before", c.before},
                        {"after", c.after},
                        {"ratio", c.after / c.before}})
          << "\n";
    return 0;
  }
  print_text(all, out);
  tell_alone(a, b, before, out);
  tell_alone(b, a, after, out);
  if (a.machine != b.machine)
    out << "the machines differ, or were busy otherwise: " << a.machine.dump() << " and "
        << b.machine.dump() << "\n";
  return 0;
}

}  // namespace weft::train
