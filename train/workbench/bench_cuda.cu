#include "train/workbench/bench_cuda.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/cuda_graph.cuh"
#include "core/json.h"
#include "core/random.h"
#include "core/units.h"
#include "kernels/contract/agreement.h"
#include "kernels/tile/gemm.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using namespace kernels;

double of(int64_t a) { return static_cast<double>(a); }

// A row: an operation and a shape of it.
struct Problem {
  const Operation* operation;
  GpuShape shape;
  Tensors inputs = {};  // on the CPU, where the shape does not say how to draw them
};

// An operation that names no shape is timed at its benchmark of the CPU.
std::vector<Problem> problems() {
  constexpr int64_t kLength = 4096;
  std::vector<Problem> list;
  for (const Operation* op : operations()) {
    if (!op->has_cuda_form()) continue;
    for (const GpuShape& shape : op->gpu_shapes()) list.push_back({op, shape});
    if (!op->gpu_shapes().empty()) continue;
    const BenchCase c = op->bench(kLength);
    if (c.inputs.empty()) continue;
    list.push_back(
        {op,
         {.name = concat(op->name(), " length", kLength), .settings = c.settings, .flops = c.flops},
         c.inputs});
  }
  return list;
}

// "[B, T, H, K]" with the sizes behind the letters.
Shape shape_of(const std::string& letters, const GpuShape& s) {
  Shape shape;
  for (const std::string& letter : letters_of(letters)) {
    const auto found = s.sizes.find(letter);
    require(found != s.sizes.end(), s.name, ": no size is given for ", letter);
    shape.append(found->second);
  }
  return shape;
}

// Normal numbers: a block of them made on the host, repeated.
Tensor noise(const Shape& shape, const std::string& name, double scale, Dtype dtype) {
  constexpr int64_t kBlock = 1 << 20;
  const Tensor block = normal({kBlock}, 7, name, scale).to(dtype).to(kCuda);
  const Tensor t = empty({std::max<int64_t>(1, shape.numel())}, dtype, kCuda);
  for (int64_t at = 0; at < t.numel(); at += kBlock) {
    const int64_t n = std::min(kBlock, t.numel() - at);
    t.slice(0, at, at + n).copy_from(block.slice(0, 0, n));
  }
  return t.slice(0, 0, shape.numel()).reshape(shape);
}

Tensor uniform_numbers(const Shape& shape, const std::string& name, Uniform u, Dtype dtype) {
  if (u.low == u.high) return full(shape, u.low, dtype, kCuda);
  const Random random(3, stream_of(name));
  const Tensor host = empty(shape, Dtype::f32);
  for (int64_t i = 0; i < host.numel(); ++i)
    host.data<float>()[i] =
        static_cast<float>(u.low + (u.high - u.low) * random.uniform(static_cast<uint64_t>(i)));
  return host.to(dtype).to(kCuda);
}

Tensor input_of(const Field& f, const GpuShape& s) {
  const Shape shape = shape_of(f.shape, s);
  const Dtype dtype = f.wide ? Dtype::f32 : Dtype::bf16;
  const auto bounds = s.uniform.find(f.name);
  if (bounds != s.uniform.end()) return uniform_numbers(shape, f.name, bounds->second, dtype);
  const auto deviation = s.deviations.find(f.name);
  return noise(shape, f.name, deviation == s.deviations.end() ? 1 : deviation->second, dtype);
}

Tensors inputs_of(const Problem& p) {
  Tensors in = rounded_to(Dtype::bf16, p.inputs, p.operation->inputs());
  for (const auto& [name, t] : p.shape.index) in[name] = t;
  for (auto& [name, t] : in)  // borders of documents stay where the host reads them
    if (name != "cu_seqlens") t = t.to(kCuda);
  if (!p.inputs.empty()) return in;
  for (const Field& f : p.operation->inputs()) {
    const auto& with = p.shape.with;
    if (!f.optional || std::find(with.begin(), with.end(), f.name) != with.end())
      in[f.name] = input_of(f, p.shape);
  }
  return in;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// Milliseconds a call, each with its own marks around it.
double by_call(const std::function<void()>& f, double budget) {
  f();
  f();
  Event start(kCuda), end(kCuda);
  std::vector<double> times;
  double sum = 0;
  while (times.size() < 5 || (sum < 1e3 * budget && times.size() < 200)) {
    start.record();
    f();
    end.record();
    end.wait();
    times.push_back(static_cast<double>(end.since(start)));
    sum += times.back();
  }
  return median(times);
}

// Milliseconds a call of a graph of several; 0 where it cannot be recorded.
double by_graph(const std::function<void()>& f, double budget) {
  constexpr int kCalls = 10;
  Graph graph(kCuda);
  try {
    graph.record([&] {
      for (int i = 0; i < kCalls; ++i) f();
    });
  } catch (const Error&) {
    return 0;
  }
  return by_call([&] { graph.launch(); }, budget) / kCalls;
}

MachineRates measure_gpu(double budget) {
  MachineRates rates;
  constexpr int64_t n = 8192;
  const Tensor a = noise({n, n}, "a", 1, Dtype::bf16), b = noise({n, n}, "b", 1, Dtype::bf16);
  const Tensor c = empty({n, n}, Dtype::bf16, kCuda);
  rates.flops = 2.0 * n * n * n / (1e-3 * by_call([&] { cuda_gemm(a, b, c); }, budget));
  const Tensor from = zeros({int64_t{1} << 30}, Dtype::u8, kCuda), to = empty_like(from);
  rates.bytes = 2.0 * of(from.numel()) / (1e-3 * by_call([&] { to.copy_from(from); }, budget));
  return rates;
}

double bytes_of(const Tensors& tensors) {
  double bytes = 0;
  for (const auto& [name, t] : tensors) bytes += of(t.numel() * size_of(t.dtype()));
  return bytes;
}

struct Peer {
  std::string name;
  double forward = 0, both = 0;
};

// Lines {"name": ..., "peer": ..., "forward_ms": ..., "both_ms": ...}; the fastest peer of a name.
std::map<std::string, Peer> read_peers(const std::string& path) {
  std::map<std::string, Peer> peers;
  if (path.empty()) return peers;
  std::ifstream in(path);
  require(in.good(), path, ": cannot be read; tests/peers/cuda_ops.py writes such a file");
  for (std::string line; std::getline(in, line);) {
    const auto j = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!j.is_object() || !j.contains("name")) continue;
    const auto number = [&](const char* key) {
      return j.contains(key) && j[key].is_number() ? j[key].get<double>() : 0.0;
    };
    const Peer p{j.value("peer", std::string("peer")), number("forward_ms"), number("both_ms")};
    Peer& best = peers[j["name"].get<std::string>()];
    if (best.both == 0 || (p.both > 0 && p.both < best.both)) best = p;
  }
  return peers;
}

CudaBenchRow time_problem(const Problem& p, double budget, const MachineRates& rates) {
  const Operation& op = *p.operation;
  const GpuShape& s = p.shape;
  const Tensors in = inputs_of(p);
  CudaBenchRow row;
  row.name = s.name;
  Tensors y = op.forward(Form::chunkwise, in, s.settings);
  Tensors dy;
  const Field first = op.outputs()[0];
  dy[gradient_name(first.name)] =
      noise(y.at(first.name).shape(), "dy", 1, first.wide ? Dtype::f32 : Dtype::bf16);
  const double bytes = bytes_of(in) + bytes_of(y);
  y.clear();
  const auto forward = [&] { op.forward(Form::chunkwise, in, s.settings); };
  const auto both = [&] { op.backward(Form::chunkwise, in, s.settings, dy, s.constants); };
  row.forward = by_call(forward, budget);
  row.forward_graph = by_graph(forward, budget);
  row.both = by_call(both, budget);
  row.both_graph = by_graph(both, budget);
  const auto least = [&](double flops, double b) {
    return 1e3 * std::max(flops / rates.flops, b / rates.bytes);
  };
  row.least_forward = least(s.flops.forward, bytes);
  // A backward pass writes gradients, and mostly reads the inputs once more.
  const double passes = s.backward_reads_inputs ? 2 : 1;
  row.least_both = least(s.flops.forward, bytes) + least(s.flops.backward, passes * bytes);
  const double seconds = 1e-3 * (row.both_graph > 0 ? row.both_graph : row.both);
  row.teraflops = (s.flops.forward + s.flops.backward) / seconds / 1e12;
  row.terabytes = (1 + passes) * bytes / seconds / 1e12;
  return row;
}

nlohmann::ordered_json json_of(const CudaBenchRow& r) {
  return {{"name", r.name},
          {"forward_ms", r.forward},
          {"forward_graph_ms", r.forward_graph},
          {"both_ms", r.both},
          {"both_graph_ms", r.both_graph},
          {"least_forward_ms", r.least_forward},
          {"least_both_ms", r.least_both},
          {"teraflops", r.teraflops},
          {"terabytes", r.terabytes},
          {"peer", r.peer},
          {"peer_forward_ms", r.peer_forward},
          {"peer_both_ms", r.peer_both}};
}

void print_rows(const std::vector<CudaBenchRow>& rows, std::ostream& out) {
  std::vector<std::vector<std::string>> lines;
  const auto some = [](const char* format, double v) {
    return v > 0 ? number_text(format, v) : "-";
  };
  for (const CudaBenchRow& r : rows) {
    const double forward = r.forward_graph > 0 ? r.forward_graph : r.forward;
    const double both = r.both_graph > 0 ? r.both_graph : r.both;
    lines.push_back({r.name, number_text("%.3f", r.forward), some("%.3f", r.forward_graph),
                     number_text("%.3f", r.both), some("%.3f", r.both_graph),
                     some("%.0f", r.teraflops), number_text("%.2f", r.terabytes),
                     number_text("%.2f", r.least_forward / forward),
                     number_text("%.2f", r.least_both / both),
                     r.peer_forward > 0 ? number_text("%.2f", r.peer_forward / forward) : "-",
                     r.peer_both > 0 ? number_text("%.2f", r.peer_both / both) : "-", r.peer});
  }
  print_table(out,
              {"operation", "fwd ms", "graph", "both ms", "graph", "TFLOP/s", "TB/s",
               "of floor fwd", "both", "peer/ours fwd", "both", "peer"},
              lines);
  out << "\nboth: forward + backward. of floor: what bytes and products take at the machine's "
         "rates, "
         "over our time.\npeer/ours above 1: ours is faster.\n";
}

}  // namespace

int run_cuda_bench(const BenchArguments& a, std::ostream& out) {
  require(a.set.empty() && a.without.empty() && a.lengths.empty(),
          "bench --device cuda: it times fixed shapes; --set, --without and --lengths are for "
          "--device cpu");
  std::vector<Problem> list;
  for (const Problem& p : problems()) {
    const auto wanted = [&](const std::string& n) {
      return p.operation->name() == n || p.shape.name.starts_with(n);
    };
    if (a.names.empty() || std::any_of(a.names.begin(), a.names.end(), wanted)) list.push_back(p);
  }
  require(!list.empty(), "bench --device cuda: ", a.names.front(),
          " has no form on a GPU, or no benchmark");
  const std::map<std::string, Peer> peers = read_peers(a.peers);
  const MachineRates rates = measure_gpu(std::max(a.budget, 0.1));
  if (a.json)
    out << json_line({{"name", "machine"},
                      {"tflops", rates.flops / 1e12},
                      {"tbytes_per_second", rates.bytes / 1e12}})
        << "\n";
  else
    out << "matrix product " << number_text("%.0f", rates.flops / 1e12) << " TFLOP/s, copy "
        << number_text("%.2f", rates.bytes / 1e12) << " TB/s (bf16)\n\n";
  std::vector<CudaBenchRow> rows;
  {
    TaskProgress line("bench");
    for (const Problem& p : list) {
      line.show(of(static_cast<int64_t>(rows.size())) / of(static_cast<int64_t>(list.size())),
                p.shape.name);
      try {
        rows.push_back(time_problem(p, a.budget, rates));
      } catch (const std::exception& e) {  // the other rows are worth having
        out << p.shape.name << ": " << e.what() << "\n";
        continue;
      }
      allocator(kCuda).empty_cache();
      const auto peer = peers.find(p.shape.name);
      if (peer != peers.end()) {
        rows.back().peer = peer->second.name;
        rows.back().peer_forward = peer->second.forward;
        rows.back().peer_both = peer->second.both;
      }
      if (!a.json) continue;
      out << json_line(json_of(rows.back())) << "\n";
      flush_output();
    }
  }
  if (!a.json) print_rows(rows, out);
  return 0;
}

}  // namespace weft::train
