#include "train/workbench/report.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <iostream>

#include "core/error.h"
#include "core/system.h"
#include "core/units.h"

namespace weft::train {
namespace {

bool is_number(const std::string& cell) {
  return !cell.empty() && (std::isdigit(static_cast<unsigned char>(cell[0])) || cell[0] == '-');
}

}  // namespace

void TaskProgress::show(double part, const std::string& label) {
  const bool other = label != label_;
  if (live_.terminal() ? !live_.due() : !other) return;
  label_ = label;
  const double spent = std::chrono::duration<double>(Clock::now() - start_).count();
  const bool known = live_.terminal() && part > 0.02;
  live_.draw(concat(task_, ": ", label, " (", number_text("%.0f%%", 100 * part),
                    known ? concat(", ", duration_text(spent / part * (1 - part)), " left") : "",
                    ")"));
}

void print_table(std::ostream& out, const std::vector<std::string>& heading,
                 const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> width(heading.size());
  std::vector<bool> right(heading.size(), false);
  for (size_t c = 0; c < heading.size(); ++c) {
    width[c] = heading[c].size();
    for (const auto& row : rows) {
      width[c] = std::max(width[c], row[c].size());
      if (is_number(row[c])) right[c] = true;
    }
  }
  const auto print = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string gap(width[c] - row[c].size(), ' ');
      line += (c ? "  " : "") + (right[c] ? gap + row[c] : row[c] + gap);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << "\n";
  };
  print(heading);
  for (const auto& row : rows) print(row);
}

void flush_output() {
  const std::string what = "standard output cannot be written";
  // Streams hand all on to stdio, which keeps it: this flush is the one that knows the reason.
  require_call(code_of(std::fflush(stdout)), what);
  require(std::cout.flush().good() && std::ferror(stdout) == 0, what,
          ": some of what was printed is lost");
}

}  // namespace weft::train
