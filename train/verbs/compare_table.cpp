// Recipes on several sets of data, as one table.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/text.h"
#include "core/units.h"
#include "train/pages/page.h"
#include "train/verbs/compare.h"
#include "train/verbs/curves.h"

namespace weft::train {

using nlohmann::ordered_json;

namespace {

struct Column {
  std::string title;
  const Comparison* comparison;
  Measure measure;
};

Measure last_number(const std::string& key, const char* format) {
  return {"", "", format, 1, [key](const RunMetrics& r) { return last_of(r, key.c_str()); }};
}

// "mqar", and where examples are of several kinds "mqar: 4", "mqar: 8".
std::vector<Column> columns_of(const std::vector<Comparison>& all) {
  std::vector<Column> columns;
  for (const Comparison& comparison : all) {
    const RunMetrics& one = comparison.all.front().runs.front().metrics;
    const bool task = one.has("accuracy");
    columns.push_back(
        {comparison.name + (task ? "" : ", bits a byte"), &comparison,
         task ? last_number("accuracy", "%.3f") : last_number("bits_per_byte", "%.3f")});
    std::vector<int64_t> kinds;
    for (const auto& [key, series] : one.metrics)
      if (key.rfind("accuracy_", 0) == 0) kinds.push_back(std::stoll(key.substr(9)));
    std::sort(kinds.begin(), kinds.end());
    for (const int64_t kind : kinds)
      columns.push_back({concat(comparison.name, ": ", kind), &comparison,
                         last_number(concat("accuracy_", kind), "%.3f")});
  }
  return columns;
}

}  // namespace

ordered_json table_json(const std::vector<Comparison>& all) {
  ordered_json j;
  j["made_by"] = "weft compare";
  j["seeds"] = all.front().arguments.seeds;
  j["columns"] = ordered_json::array();
  const std::vector<Column> columns = columns_of(all);
  for (const Column& column : columns)
    j["columns"].push_back(
        {{"name", as_utf8(column.title)}, {"tokens", column.comparison->tokens}});
  j["recipes"] = ordered_json::array();
  for (size_t row = 0; row < all.front().all.size(); ++row) {
    ordered_json r;
    r["name"] = as_utf8(all.front().all[row].name);
    r["cells"] = ordered_json::array();
    for (const Column& column : columns) {
      const Candidate& c = column.comparison->all[row];
      const Spread s = spread_of(c, column.measure.of);
      r["cells"].push_back({{"mean", s.mean},
                            {"least", s.least},
                            {"most", s.most},
                            {"parameters", c.plan.parameter_count},
                            {"state_bytes", c.plan.decode_bytes}});
    }
    j["recipes"].push_back(r);
  }
  return j;
}

std::string table_page(const std::vector<Comparison>& all, ordered_json& data) {
  const std::vector<Column> columns = columns_of(all);
  const int64_t seeds = all.front().arguments.seeds;
  Page page{"compare", "Recipes and what they learn", "", "", &data};
  page.note = concat(
      "The part of the answers that are right on examples that no run was trained on, unless the "
      "column says another measure; ",
      seeds == 1 ? std::string("seed 1.")
                 : concat("the mean of seeds 1 to ", seeds, ", and from the least to the most."),
      " The page of each column lies in the folder of its name.");
  std::string t = "<div class=\"scroll\"><table><tr><th>recipe</th><th>parameters</th>";
  for (const Column& column : columns) t += "<th>" + escaped(column.title) + "</th>";
  t += "<th>state of a generation</th></tr>\n";
  for (size_t row = 0; row < all.front().all.size(); ++row) {
    const Candidate& first = all.front().all[row];
    t += concat("<tr><td>", escaped(first.name), "</td><td>",
                count_text(double(first.plan.parameter_count)), "</td>");
    for (const Column& column : columns)
      t += spread_cell(column.measure, column.comparison->all[row]);
    t += concat("<td>", bytes_text(double(first.plan.decode_bytes)), "</td></tr>\n");
  }
  page.body = t + "</table></div>\n";
  return page.text();
}

std::string table_text(const std::vector<Comparison>& all) {
  const std::vector<Column> columns = columns_of(all);
  std::string text = "| recipe |", rule = "| --- |";
  for (const Column& column : columns) {
    text += " " + column.title + " |";
    rule += " --- |";
  }
  text += "\n" + rule + "\n";
  for (size_t row = 0; row < all.front().all.size(); ++row) {
    text += "| " + all.front().all[row].name + " |";
    for (const Column& column : columns) {
      const Spread s = spread_of(column.comparison->all[row], column.measure.of);
      const auto number = [&](double v) { return number_text(column.measure.format, v); };
      text += " " + number(s.mean);
      if (s.least < s.most) text += concat(" (", number(s.least), " to ", number(s.most), ")");
      text += " |";
    }
    text += "\n";
  }
  return text;
}

}  // namespace weft::train
