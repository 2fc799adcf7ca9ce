// What a profile holds, for people. Recording it is in profile.cu.
#include "train/profile.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/json.h"

namespace weft::train {

std::string text(const GpuUse& u, size_t rows) {
  char line[200];
  std::snprintf(line, sizeof line, "GPU: %.2f ms, idle %.2f %%, %ld kernels and copies",
                1e3 * u.seconds, u.seconds > 0 ? 100 * (1 - u.busy / u.seconds) : 0.0,
                static_cast<long>(u.kernels));
  std::string all = line;
  for (size_t i = 0; i < std::min(rows, u.parts.size()); ++i) {
    std::snprintf(line, sizeof line, "\n  %6.2f %%  %9.3f ms  %6ld x  %.100s",
                  100 * u.parts[i].seconds / u.seconds, 1e3 * u.parts[i].seconds,
                  static_cast<long>(u.parts[i].count), u.parts[i].name.c_str());
    all += line;
  }
  return all;
}

std::string packed(const std::vector<TraceBar>& bars) {
  std::ostringstream text;
  for (const TraceBar& b : bars)
    text << b.begin << ' ' << b.end << ' ' << b.on_gpu << ' ' << b.name << '\n';
  return text.str();
}

std::vector<TraceBar> unpacked(const std::string& text) {
  std::vector<TraceBar> bars;
  std::istringstream in(text);
  for (TraceBar b; in >> b.begin >> b.end >> b.on_gpu && std::getline(in >> std::ws, b.name);)
    bars.push_back(b);
  return bars;
}

namespace {

// What the bars of a rank and their rows are called.
void add_names(std::string& text, size_t rank) {
  const auto name = [&](const char* of, int row, const std::string& is) {
    text += text.back() == '[' ? "\n" : ",\n";
    text += json_line(
        {{"ph", "M"}, {"pid", rank}, {"tid", row}, {"name", of}, {"args", {{"name", is}}}});
  };
  name("process_name", 0, concat("rank ", rank));
  name("thread_name", 0, "operations");
  name("thread_name", 1, "GPU");
}

}  // namespace

std::string trace_of(const std::vector<std::vector<TraceBar>>& by_rank) {
  std::string text = "{\"traceEvents\": [";
  for (size_t r = 0; r < by_rank.size(); ++r) add_names(text, r);
  uint64_t zero = UINT64_MAX;
  for (const auto& bars : by_rank)
    for (const TraceBar& b : bars) zero = std::min(zero, b.begin);
  for (size_t r = 0; r < by_rank.size(); ++r)
    for (const TraceBar& b : by_rank[r])
      text += ",\n" + json_line({{"ph", "X"},
                                 {"pid", r},
                                 {"tid", b.on_gpu ? 1 : 0},
                                 {"name", b.name},
                                 {"ts", static_cast<double>(b.begin - zero) / 1e3},
                                 {"dur", static_cast<double>(b.end - b.begin) / 1e3}});
  return text + "\n]}\n";
}

}  // namespace weft::train
