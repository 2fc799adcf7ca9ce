#include "train/workbench/bench.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/json.h"
#include "core/parallel.h"
#include "core/units.h"
#include "kernels/contract/agreement.h"
#include "kernels/tile/cpu_gemm.h"
#include "train/workbench/bench_cuda.h"
#include "train/workbench/report.h"
#include "train/workbench/timing.h"

namespace weft::train {
namespace {

using namespace kernels;

// What is timed: an operation's benchmark, with options of its own.
struct Variant {
  std::string operation;
  Settings settings;
  std::vector<std::string> without;

  std::string name() const {
    std::string text = operation;
    for (const auto& [key, value] : settings) text += concat(" ", key, "=", value);
    for (const std::string& input : without) text += " without " + input;
    return text;
  }
};

bool has_bench(const Operation& op) { return !op.bench(1).inputs.empty(); }

// The mechanisms, which are the operations with a recurrent form, and settings of theirs that are
// other algorithms.
std::vector<Variant> mechanisms() {
  std::vector<Variant> list = {
      {"attention", {}, {}}, {"attention", {{"window", "512"}}, {}}, {"linear", {}, {"g"}}};
  for (const Operation* op : operations()) {
    const std::vector<Form> forms = op->forms();
    const bool recurrent = std::find(forms.begin(), forms.end(), Form::recurrent) != forms.end();
    if (recurrent && op->name() != "attention" && has_bench(*op))
      list.push_back({op->name(), {}, {}});
  }
  return list;
}

Settings parse_settings(const std::vector<std::string>& words) {
  Settings settings;
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    require(equals != std::string::npos && equals > 0, "bench --set ", word,
            ": expected OPTION=VALUE, as in --set window=512");
    settings[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return settings;
}

std::vector<Variant> variants_of(const BenchArguments& a) {
  std::vector<std::string> names = a.names;
  const std::vector<Variant> standard = mechanisms();
  const bool plain = a.set.empty() && a.without.empty();
  require(plain || !names.empty(), "bench --set and --without need the name of an operation");
  if (names.empty())
    for (const Variant& v : standard)
      if (std::find(names.begin(), names.end(), v.operation) == names.end())
        names.push_back(v.operation);
  std::vector<Variant> list;
  for (const std::string& name : names) {
    require(has_bench(operation(name)), "bench ", name,
            ": it has no benchmark; its reference.h may give it one, bench()");
    if (!plain) {
      list.push_back({name, parse_settings(a.set), a.without});
      continue;
    }
    const size_t before = list.size();
    for (const Variant& v : standard)
      if (v.operation == name) list.push_back(v);
    if (list.size() == before) list.push_back({name, {}, {}});
  }
  // What linear-time mechanisms are compared with comes first.
  const auto is_mechanism = [&](const Variant& v) {
    return std::any_of(standard.begin(), standard.end(),
                       [&](const Variant& s) { return s.operation == v.operation; });
  };
  const bool wanted = std::any_of(list.begin(), list.end(), is_mechanism);
  const bool there = std::any_of(list.begin(), list.end(),
                                 [](const Variant& v) { return v.name() == "attention"; });
  if (wanted && !there) list.insert(list.begin(), {"attention", {}, {}});
  return list;
}

int64_t bytes_of(const Tensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, t] : tensors) bytes += t.numel() * size_of(t.dtype());
  return bytes;
}

// The benchmark's products are those of all causal pairs; a window leaves out most of them.
double part_of_window(const Settings& settings, int64_t T) {
  const auto found = settings.find("window");
  if (found == settings.end()) return 1;
  const double t = static_cast<double>(T);
  const double w = std::min(t, std::max(0.0, std::strtod(found->second.c_str(), nullptr)));
  if (w == 0) return 1;
  return (w * (w + 1) / 2 + (t - w) * w) / (t * (t + 1) / 2);
}

BenchRow time_variant(const Variant& v, int64_t length, double budget, const MachineRates& rates) {
  const Operation& op = operation(v.operation);
  BenchCase c = op.bench(length);
  require(!c.inputs.empty(), op.name(), " has no benchmark");
  for (const auto& [key, value] : v.settings) c.settings[key] = value;
  for (const std::string& name : v.without)
    require(c.inputs.erase(name) == 1, op.name(), ": its benchmark has no input \"", name,
            "\" to leave out");
  const Tensors in = rounded_to(Dtype::f32, c.inputs, op.inputs());
  c.inputs.clear();
  const Tensors y = op.forward(Form::chunkwise, in, c.settings);
  const std::string first = op.outputs()[0].name;
  const Tensors dy = {{gradient_name(first), normal(y.at(first).shape(), 2, "dy").to(Dtype::f32)}};
  const auto both = [&] { op.backward(Form::chunkwise, in, c.settings, dy); };

  BenchRow row;
  row.name = v.name();
  row.length = length;
  Allocator& memory = allocator(kCpu);
  memory.reset_peak();
  const int64_t before = memory.stats().current;
  both();
  row.memory = memory.stats().peak - before;
  const Seconds forward = seconds_of(budget, [&] { op.forward(Form::chunkwise, in, c.settings); });
  row.forward = forward.median;
  row.best_forward = forward.best;
  const Seconds seconds = seconds_of(budget, both);
  row.both = seconds.median;
  row.best = seconds.best;
  const double flops = (c.flops.forward + c.flops.backward) * part_of_window(v.settings, length);
  // The backward pass moves values and gradients.
  const double bytes = 3 * static_cast<double>(bytes_of(in) + bytes_of(y));
  row.least = std::max(flops / rates.flops, bytes / rates.bytes);
  allocator(kCpu).empty_cache();
  return row;
}

void add_ratios(std::vector<BenchRow>& rows) {
  BenchRow& row = rows.back();
  for (const BenchRow& other : rows) {
    if (other.name == row.name && 2 * other.length == row.length) {
      row.time_ratio = row.best / other.best;
      row.memory_ratio = static_cast<double>(row.memory) / static_cast<double>(other.memory);
    }
    if (other.name == "attention" && row.name != "attention" && other.length == row.length)
      row.attention_ratio = other.best / row.best;
  }
}

nlohmann::ordered_json json_of(const BenchRow& r) {
  return {{"name", r.name},
          {"T", r.length},
          {"forward_ms", 1e3 * r.forward},
          {"both_ms", 1e3 * r.both},
          {"memory_bytes", r.memory},
          {"both_best_ms", 1e3 * r.best},
          {"least_ms", 1e3 * r.least},
          {"time_ratio", r.time_ratio},
          {"memory_ratio", r.memory_ratio},
          {"attention_ratio", r.attention_ratio}};
}

void print_rows(const std::vector<BenchRow>& rows, std::ostream& out) {
  std::vector<std::vector<std::string>> lines;
  const auto ratio = [](double value) { return value > 0 ? number_text("%.2f", value) : "-"; };
  for (const BenchRow& r : rows)
    lines.push_back({r.name, std::to_string(r.length), number_text("%.3f", 1e3 * r.forward),
                     number_text("%.3f", 1e3 * r.both),
                     number_text("%.2f", static_cast<double>(r.memory) / 1048576),
                     ratio(r.least > 0 ? r.best / r.least : 0), ratio(r.time_ratio),
                     ratio(r.memory_ratio), ratio(r.attention_ratio)});
  print_table(out,
              {"operation", "T", "forward ms", "both ms", "peak MiB", "x least", "time x2",
               "memory x2", "attention / this"},
              lines);
  out << "\nboth: forward + backward. x least: over what its products and bytes take at the "
         "machine's "
         "rates.\ntime x2, memory x2: over the row of half the length. Ratios are of the fastest "
         "repeats.\n";
}

}  // namespace

MachineRates measure_machine(double budget) {
  MachineRates rates;
  {
    constexpr int64_t n = 1024;
    const Tensor a = normal({n, n}, 1, "a").to(Dtype::f32),
                 b = normal({n, n}, 1, "b").to(Dtype::f32);
    const Tensor c = empty({n, n}, Dtype::f32);
    const double seconds = seconds_of(budget, [&] {
                             parallel_gemm<float>(n, n, n, 1, {a.data<float>(), n},
                                                  {b.data<float>(), n}, 0, {c.data<float>(), n});
                           }).best;
    rates.flops = 2.0 * n * n * n / seconds;
  }
  constexpr int64_t kBytes = 64 << 20, kPiece = 1 << 20;
  const Tensor from = full({kBytes}, 1, Dtype::u8), to = empty({kBytes}, Dtype::u8);
  const double seconds = seconds_of(budget, [&] {
                           parallel_ranges(kBytes, kPiece, [&](int64_t begin, int64_t end) {
                             std::memcpy(to.data<uint8_t>() + begin, from.data<uint8_t>() + begin,
                                         static_cast<size_t>(end - begin));
                           });
                         }).best;
  rates.bytes = 2.0 * static_cast<double>(kBytes) / seconds;
  return rates;
}

std::vector<BenchRow> bench(const BenchArguments& a, const MachineRates& rates,
                            std::ostream* json_lines) {
  const std::vector<Variant> variants = variants_of(a);
  std::vector<int64_t> lengths = a.lengths;
  if (lengths.empty()) lengths = {512, 1024, 2048, 4096, 8192};
  constexpr int64_t kLongest = std::numeric_limits<int32_t>::max();  // positions are i32
  for (const int64_t length : lengths)
    require(length > 0 && length <= kLongest, "bench --lengths: ", length,
            " is not a length; expected 1 to ", kLongest);
  std::sort(lengths.begin(), lengths.end());
  TaskProgress line("bench");
  std::vector<BenchRow> rows;
  const double total = static_cast<double>(variants.size() * lengths.size());
  for (const Variant& v : variants)
    for (const int64_t length : lengths) {
      line.show(static_cast<double>(rows.size()) / total, v.name());
      rows.push_back(time_variant(v, length, a.budget, rates));
      add_ratios(rows);
      if (!json_lines) continue;
      *json_lines << json_line(json_of(rows.back())) << "\n";
      flush_output();
    }
  return rows;
}

int run_bench(const BenchArguments& a, std::ostream& out) {
  require(a.budget >= 0 && a.budget <= 3600, "bench --budget: ", a.budget,
          ", expected seconds from 0 to 3600");
  if constexpr (has_cuda)
    if (device_from(a.device).is_cuda()) return run_cuda_bench(a, out);
  require(device_from(a.device).is_cpu(), "bench --device ", a.device, ": nothing runs there");
  variants_of(a);  // names are refused before anything is timed
  const MachineRates rates = measure_machine(std::max(a.budget, 0.1));
  if (a.json)
    out << json_line({{"name", "machine"},
                      {"threads", thread_count()},
                      {"gflops", rates.flops / 1e9},
                      {"gbytes_per_second", rates.bytes / 1e9}})
        << "\n";
  else
    out << thread_count() << " threads: matrix product " << number_text("%.1f", rates.flops / 1e9)
        << " GFLOP/s, copy " << number_text("%.1f", rates.bytes / 1e9) << " GB/s (f32)\n\n";
  const std::vector<BenchRow> rows = bench(a, rates, a.json ? &out : nullptr);
  if (!a.json) print_rows(rows, out);
  return 0;
}

}  // namespace weft::train
