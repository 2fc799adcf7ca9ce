#include "train/report.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/system.h"

namespace weft::train {
namespace {

std::string time_left(double seconds) {
  const auto s = static_cast<long>(std::ceil(seconds));
  return s < 60 ? std::to_string(s) + "s"
                : printed("%.0fm ", std::floor(seconds / 60)) + std::to_string(s % 60) + "s";
}

bool is_number(const std::string& cell) {
  return !cell.empty() && (std::isdigit(static_cast<unsigned char>(cell[0])) || cell[0] == '-');
}

}  // namespace

LiveLine::~LiveLine() {
  if (shown_ && isatty(STDERR_FILENO)) std::fputs("\r\033[K", stderr);
}

void LiveLine::show(double part, const std::string& label) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto now = Clock::now();
  const bool other = label != label_;
  label_ = label;
  if (!terminal) {
    if (other) std::fprintf(stderr, "%s: %s (%.0f%%)\n", task_.c_str(), label.c_str(), 100 * part);
    return;
  }
  if (shown_ && now - drawn_ < std::chrono::milliseconds(100)) return;
  shown_ = true;
  drawn_ = now;
  const double spent = std::chrono::duration<double>(now - start_).count();
  const std::string left = part > 0.02 ? ", " + time_left(spent / part * (1 - part)) + " left" : "";
  std::fprintf(stderr, "\r\033[K%s: %s (%.0f%%%s)", task_.c_str(), label.c_str(), 100 * part,
               left.c_str());
  std::fflush(stderr);
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

std::string json_text(const std::string& text) {
  using nlohmann::json;
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string json_number(double value) {
  return std::isfinite(value) ? printed("%.9g", value) : "null";
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace weft::train
