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

// A shape of an operation: the sizes behind the letters of its fields, "W - 1" with one of its own.
// Optional inputs that `with` does not name are left out. Products of the forward and the backward
// pass, in FLOPs.
struct Problem {
  std::string name, operation;
  std::map<std::string, int64_t> sizes;
  std::vector<std::string> with;
  Settings settings;
  double forward = 0, backward = 0;
  std::vector<std::string> constants = {};  // inputs whose gradient nobody asks for
};

double of(int64_t a) { return static_cast<double>(a); }

Problem attention(int64_t B, int64_t T, int64_t H, int64_t K, int64_t window = 0) {
  const double pairs = window > 0 ? of(window) * (of(T) - of(window) / 2) : of(T) * of(T + 1) / 2;
  const double flops = 4 * of(B) * of(H) * pairs * of(K);
  Problem p{concat("attention B", B, " T", T, " H", H, " K", K),
            "attention",
            {{"B", B}, {"T", T}, {"S", T}, {"H", H}, {"Hk", H}, {"K", K}, {"V", K}},
            {},
            {},
            flops,
            2.5 * flops};
  if (window > 0) {
    p.name += concat(" window", window);
    p.settings["window"] = std::to_string(window);
  }
  return p;
}

// Blocks of 64 of which a query sees its own and every `stride`-th one before it.
Problem block_sparse(int64_t B, int64_t T, int64_t H, int64_t K, int64_t stride) {
  double pairs = 0;
  for (int64_t row = 0; row < T / 64; ++row) pairs += 64 * 64 * (of(row / stride) + 0.5);
  const double flops = 4 * of(B) * of(H) * pairs * of(K);
  return {
      concat("block_sparse B", B, " T", T, " H", H, " K", K, " strided", stride),
      "block_sparse",
      {{"B", B}, {"T", T}, {"S", T}, {"H", H}, {"Hk", H}, {"K", K}, {"V", K}, {"stride", stride}},
      {},
      {{"block", "64"}},
      flops,
      2.5 * flops};
}

// The chunkwise recurrences in chunks of 64: products a token and head.
Problem recurrence(const std::string& op, const std::string& label, int64_t B, int64_t T, int64_t H,
                   int64_t Hk, int64_t K, int64_t V, std::vector<std::string> with) {
  const bool delta = op == "delta" || op == "kda";
  const double C = 64, k = of(K), v = of(V), heads = of(B) * of(T) * of(H);
  const double forward = delta ? 6 * k * v + C * (6 * k + 4 * v) : 4 * k * v + 2 * C * (k + v);
  const double backward =
      delta ? 12 * k * v + C * (14 * k + 8 * v) : 3 * (4 * k * v) + 5 * C * (k + v);
  return {concat(label, " B", B, " T", T, " H", H, " K", K, " V", V),
          op,
          {{"B", B}, {"T", T}, {"H", H}, {"Hk", Hk}, {"K", K}, {"V", V}, {"N", B}},
          std::move(with),
          {{"return_state", "false"}},
          heads * forward,
          heads * backward};
}

Problem rows(const std::string& op, int64_t R, int64_t D, std::vector<std::string> with,
             Settings settings = {}) {
  return {concat(op, " R", R, " D", D),
          op,
          {{"R", R}, {"D", D}},
          std::move(with),
          std::move(settings),
          0,
          0};
}

std::vector<Problem> problems() {
  std::vector<Problem> list = {attention(4, 4096, 16, 128), attention(32, 1024, 12, 64),
                               attention(1, 16384, 16, 128), attention(4, 4096, 16, 128, 512),
                               attention(1, 16384, 16, 128, 1024)};
  list.push_back(block_sparse(1, 16384, 16, 128, 8));
  list.push_back(recurrence("linear", "linear", 4, 4096, 16, 16, 128, 128, {}));
  list.push_back(recurrence("linear", "retention", 4, 4096, 16, 16, 128, 128, {"log_gamma"}));
  list.back().constants = {"log_gamma"};  // fixed rates, in layers and in peers
  list.push_back(recurrence("linear", "simple_gla", 4, 4096, 16, 16, 128, 128, {"g"}));
  list.push_back(recurrence("linear", "mamba2", 4, 4096, 64, 1, 128, 64, {"g"}));
  list.push_back(recurrence("gated_linear", "gated_linear", 4, 4096, 16, 16, 128, 128, {"g"}));
  list.push_back(recurrence("delta", "delta", 4, 4096, 16, 16, 128, 128, {"beta"}));
  list.push_back(recurrence("delta", "gated_delta", 4, 4096, 16, 16, 128, 128, {"beta", "g"}));
  list.push_back(recurrence("kda", "kda", 4, 4096, 16, 16, 128, 128, {"beta", "g"}));
  list.push_back({"selective_scan B4 T4096 E4096 K16",
                  "selective_scan",
                  {{"B", 4}, {"T", 4096}, {"E", 4096}, {"K", 16}, {"N", 4}},
                  {"D", "z", "dt_bias"},
                  {{"return_state", "false"}},
                  0,
                  0});
  for (const char* norm : {"rms_norm", "layer_norm"}) {
    list.push_back(rows(norm, 32768, 768, {"weight"}));
    list.push_back(rows(norm, 32768, 768, {"weight", "residual"}));
    list.back().name = concat(norm, "_residual R32768 D768");
  }
  list.push_back(rows("gated_norm", 131072, 128, {"weight"}));
  list.push_back(rows("l2_norm", 262144, 128, {}));
  list.push_back(rows("activation", 32768, 3072, {}, {{"kind", "gelu"}}));
  list.push_back(rows("gated_activation", 32768, 2048, {}, {{"kind", "silu"}}));
  list.push_back({"short_conv B8 T4096 D3072 W4",
                  "short_conv",
                  {{"B", 8}, {"T", 4096}, {"D", 3072}, {"W", 4}, {"W - 1", 3}, {"N", 8}},
                  {},
                  {{"return_state", "false"}},
                  0,
                  0});
  list.push_back({"rotary B4 T4096 H16 K128",
                  "rotary",
                  {{"B", 4}, {"T", 4096}, {"H", 16}, {"K", 128}},
                  {},
                  {},
                  0,
                  0});
  list.push_back({"embedding R32768 V50304 D768",
                  "embedding",
                  {{"R", 32768}, {"V", 50304}, {"D", 768}},
                  {},
                  {},
                  0,
                  0});
  const double head = 2.0 * 32768 * 50304 * 768;
  list.push_back({"cross_entropy R32768 V50304 D768",
                  "cross_entropy",
                  {{"R", 32768}, {"V", 50304}, {"D", 768}},
                  {},
                  {},
                  head,
                  2 * head});
  for (const auto& [I, O] : {std::pair<int64_t, int64_t>{768, 2304}, {768, 3072}, {3072, 768}}) {
    const double flops = 2.0 * 32768 * of(I) * of(O);
    list.push_back({concat("matmul R32768 I", I, " O", O),
                    "matmul",
                    {{"R", 32768}, {"I", I}, {"O", O}},
                    {},
                    {},
                    flops,
                    2 * flops});
  }
  return list;
}

// "[B, T, H, K]" with the sizes behind the letters.
Shape shape_of(const std::string& letters, const Problem& p) {
  Shape shape;
  for (const std::string& letter : letters_of(letters)) {
    const auto found = p.sizes.find(letter);
    require(found != p.sizes.end(), p.name, ": no size is given for ", letter);
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

// Inputs in their legal range: decays below zero, keys of length near one, steps of a softplus.
Tensor input_of(const Field& f, const Problem& p) {
  const Shape shape = shape_of(f.shape, p);
  const std::string name = f.name;
  const Dtype dtype = f.wide ? Dtype::f32 : Dtype::bf16;
  const auto mapped = [&](double low, double high) {  // uniform, f32
    const Random random(3, stream_of(name));
    const Tensor host = empty(shape, Dtype::f32);
    for (int64_t i = 0; i < host.numel(); ++i)
      host.data<float>()[i] =
          static_cast<float>(low + (high - low) * random.uniform(static_cast<uint64_t>(i)));
    return host.to(dtype).to(kCuda);
  };
  if (name == "log_gamma") return mapped(-0.03, -0.001);
  if (name == "g") return full(shape, -0.05, dtype, kCuda);
  if (name == "beta") return full(shape, 0.5, dtype, kCuda);
  if (name == "A_log") return mapped(0, 2.7);
  if (name == "dt_bias") return mapped(-6, -2);
  if (name == "k" && (p.operation == "delta" || p.operation == "kda"))
    return noise(shape, name, 1 / std::sqrt(of(shape[-1])), dtype);
  return noise(shape, name, name == "w" ? 0.02 : 1, dtype);
}

Tensor strided_mask(int64_t blocks, int64_t stride) {  // u8 [1, blocks, blocks] on the CPU
  const Tensor mask = zeros({1, blocks, blocks}, Dtype::u8);
  for (int64_t row = 0; row < blocks; ++row)
    for (int64_t column = row % stride; column <= row; column += stride)
      mask.data<uint8_t>()[row * blocks + column] = 1;
  return mask;
}

Tensors inputs_of(const Operation& op, const Problem& p) {
  Tensors in;
  for (const Field& f : op.inputs())
    if (!f.optional || std::find(p.with.begin(), p.with.end(), f.name) != p.with.end())
      in[f.name] = input_of(f, p);
  for (const Setting& s : op.settings()) {  // the mask or token ids: on the GPU, as in training
    if (s.name == "block_mask")
      in[s.name] = strided_mask(p.sizes.at("T") / 64, p.sizes.at("stride")).to(kCuda);
    if (s.name != "ids" && s.name != "targets") continue;
    const Tensor ids = empty({p.sizes.at("R")}, Dtype::i32);
    const Random random(5, stream_of("ids"));
    for (int64_t i = 0; i < ids.numel(); ++i)
      ids.data<int32_t>()[i] =
          static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * of(p.sizes.at("V")));
    in[s.name] = ids.to(kCuda);
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
  const Operation& op = operation(p.operation);
  const Tensors in = inputs_of(op, p);
  CudaBenchRow row;
  row.name = p.name;
  Tensors y = op.forward(Form::chunkwise, in, p.settings);
  Tensors dy;
  const Field first = op.outputs()[0];
  dy[gradient_name(first.name)] =
      noise(y.at(first.name).shape(), "dy", 1, first.wide ? Dtype::f32 : Dtype::bf16);
  const double bytes = bytes_of(in) + bytes_of(y);
  y.clear();
  const auto forward = [&] { op.forward(Form::chunkwise, in, p.settings); };
  const auto both = [&] { op.backward(Form::chunkwise, in, p.settings, dy, p.constants); };
  row.forward = by_call(forward, budget);
  row.forward_graph = by_graph(forward, budget);
  row.both = by_call(both, budget);
  row.both_graph = by_graph(both, budget);
  const auto least = [&](double flops, double b) {
    return 1e3 * std::max(flops / rates.flops, b / rates.bytes);
  };
  row.least_forward = least(p.forward, bytes);
  // A backward pass reads the inputs once more, but for those that need none.
  const double passes = p.operation == "rotary" || p.operation == "embedding" ? 1 : 2;
  row.least_both = least(p.forward, bytes) + least(p.backward, passes * bytes);
  const double seconds = 1e-3 * (row.both_graph > 0 ? row.both_graph : row.both);
  row.teraflops = (p.forward + p.backward) / seconds / 1e12;
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
      return p.operation == n || p.name.starts_with(n);
    };
    if (a.names.empty() || std::any_of(a.names.begin(), a.names.end(), wanted)) list.push_back(p);
  }
  require(!list.empty(), "bench --device cuda: no shape is kept for ", a.names.front());
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
                p.name);
      try {
        rows.push_back(time_problem(p, a.budget, rates));
      } catch (const std::exception& e) {  // the other rows are worth having
        out << p.name << ": " << e.what() << "\n";
        continue;
      }
      allocator(kCuda).empty_cache();
      const auto peer = peers.find(p.name);
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
