#include "layers/mixing.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "autograd/watch.h"

namespace weft::layers {
namespace {

using autograd::Watched;
using kernels::Tensors;

Tensors in_f64(const Tensors& tensors) {
  Tensors wide;
  for (const auto& [name, t] : tensors) wide[name] = t.to(kCpu).to(Dtype::f64);
  return wide;
}

// An operation mixes values where its result is called o: v is mixed, or x where there is no v.
const char* values_of(const Watched& w) {
  if (w.outputs.count("o") == 0) return nullptr;
  return w.inputs.count("v") > 0 ? "v" : w.inputs.count("x") > 0 ? "x" : nullptr;
}

void require_one_text(const Watched& w, const Tensor& v) {
  const Tensor& o = w.outputs.at("o");
  require(v.size(0) == 1 && o.size(1) == v.size(1), w.name, ": the matrix of values ", v.shape(),
          " and results ", o.shape(), " is asked for, expected one whole text, B = 1");
}

// [1, T, H, V] to [heads, T, V]; each of `heads` reads the head of v that the operation gives it.
Tensor by_head(const Tensor& v, int64_t heads) {
  const int64_t T = v.size(1), H = v.size(2), V = v.size(3);
  const Tensor out = empty({heads, T, V}, Dtype::f64);
  for (int64_t h = 0; h < heads; ++h)
    out.select(0, h).copy_from(v.select(0, 0).select(1, h / (heads / H)));
  return out;
}

// The numbers 1 where a value's own token stands, for every head: [1, T, H, T].
Tensor unit_values(int64_t T, int64_t H) {
  const Tensor unit = zeros({1, T, H, T}, Dtype::f64);
  const View<double> u = view<double>(unit);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h) u(0, t, h, t) = 1;
  return unit;
}

void mix_heads(const Watched& w, Tensors in, Mixing& m) {
  const Tensor v = in.at("v");
  const int64_t T = v.size(1), heads = w.outputs.at("o").size(2);
  in["v"] = unit_values(T, v.size(2));
  m.matrix = by_head(w.again(in).at("o"), heads);
  m.values = by_head(v, heads);
  m.result = by_head(w.outputs.at("o").to(kCpu).to(Dtype::f64), heads);
}

// A one at token s, of all channels at once, on the text from s on: before it there is nothing.
void mix_channels(const Watched& w, const Tensors& in, Mixing& m) {
  const Tensor x = in.at("x");
  const int64_t T = x.size(1), E = x.size(2);
  constexpr int64_t kMost = int64_t{2} << 30;
  require(E * T <= kMost / 8 / T, w.name, ": the matrices of ", E, " channels over ", T,
          " tokens take more than 2 GiB; expected a shorter text");
  m.channels = true;
  m.matrix = zeros({E, T, T}, Dtype::f64);
  const View<double> M = view<double>(m.matrix);
  for (int64_t s = 0; s < T; ++s) {
    Tensors tail;
    for (const auto& [name, t] : in)  // what has a number for each token begins with [1, T]
      tail[name] = t.dims() == 3 ? t.slice(1, s, T).contiguous() : t;
    const Tensor unit = zeros({1, T - s, E}, Dtype::f64);
    unit.slice(1, 0, 1).fill(1);
    tail["x"] = unit;
    const Tensor o = w.again(tail).at("o");
    const View<const double> y = view<const double>(o);
    for (int64_t t = s; t < T; ++t)
      for (int64_t e = 0; e < E; ++e) M(e, t, s) = y(0, t - s, e);
  }
  m.values = x.select(0, 0).transpose(0, 1).contiguous().reshape({E, T, 1});
  m.result = w.outputs.at("o").to(kCpu).to(Dtype::f64).select(0, 0).transpose(0, 1).contiguous();
  m.result = m.result.reshape({E, T, 1});
}

double gap_of(const Mixing& m) {
  const View<const double> M = view<const double>(m.matrix), v = view<const double>(m.values),
                           o = view<const double>(m.result);
  double gap = 0, size = 0;
  for (int64_t h = 0; h < o.size(0); ++h)
    for (int64_t t = 0; t < o.size(1); ++t)
      for (int64_t i = 0; i < o.size(2); ++i) {
        double sum = 0;
        for (int64_t s = 0; s < v.size(1); ++s) sum += M(h, t, s) * v(h, s, i);
        gap = std::max(gap, std::abs(sum - o(h, t, i)));
        size = std::max(size, std::abs(o(h, t, i)));
      }
  return size > 0 ? gap / size : gap;
}

// f of each number of a gate [1, T, H] or [1, T, H, K], the mean over K: [H, T].
Tensor gate_of(const Tensor& g, const std::function<double(double)>& f) {
  const int64_t T = g.size(1), H = g.size(2), K = g.dims() == 4 ? g.size(3) : 1;
  const Tensor flat = g.reshape({T, H, K}), out = zeros({H, T}, Dtype::f64);
  const View<const double> in = view<const double>(flat);
  const View<double> to = view<double>(out);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t k = 0; k < K; ++k) to(h, t) += f(in(t, h, k)) / static_cast<double>(K);
  return out;
}

// The step of a scan, softplus(dt + bias), the mean over its channels: [1, T].
Tensor step_of(const Tensor& dt, const Tensor& bias) {
  const int64_t T = dt.size(1), E = dt.size(2);
  const Tensor out = zeros({1, T}, Dtype::f64);
  const View<const double> in = view<const double>(dt);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t e = 0; e < E; ++e) {
      const double x = in(0, t, e) + (bias ? bias.data<double>()[e] : 0);
      out.data<double>()[t] += (x > 30 ? x : std::log1p(std::exp(x))) / static_cast<double>(E);
    }
  return out;
}

// The softmax of a router's logits [T, n]: [n, T].
Tensor routes_of(const Tensor& logits) {
  const int64_t T = logits.size(0), n = logits.size(1);
  const Tensor wide = logits.to(kCpu).to(Dtype::f64), out = empty({n, T}, Dtype::f64);
  const auto in = view<const double>(wide);
  const auto to = view<double>(out);
  for (int64_t t = 0; t < T; ++t) {
    double most = in(t, 0), sum = 0;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, in(t, i));
    for (int64_t i = 0; i < n; ++i) sum += to(i, t) = std::exp(in(t, i) - most);
    for (int64_t i = 0; i < n; ++i) to(i, t) /= sum;
  }
  return out;
}

// What an operation reads its state by: queries, or the C of a scan. "" where it keeps no state.
std::string reader_of(const kernels::Operation& op) {
  bool keeps = false;
  for (const kernels::Field& f : op.outputs())
    keeps = keeps || std::string(f.name) == "final_state";
  if (!keeps) return "";
  for (const kernels::Field& f : op.inputs())
    if (std::string(f.name) == "q" || std::string(f.name) == "C") return f.name;
  return "";
}

// The norm of the state after each token, by head: a query that is one in one place and nothing
// elsewhere reads one row of it. What settings do to a result (scale, normalize) does nothing to
// the state, so it is read without. A scan has one norm for all of its channels.
void find_state(const Watched& w, Tensors in, Mixing& m) {
  const kernels::Operation& op = kernels::operation(w.name);
  const std::string reader = reader_of(op);
  if (reader.empty()) return;
  kernels::Settings settings{{"return_state", "false"}};
  if (!m.channels) settings["scale"] = "1";
  for (const char* beside : {"D", "z"}) in.erase(beside);  // they read no state
  const Tensor read = zeros(in.at(reader).shape(), Dtype::f64);
  const int64_t K = read.size(-1), T = read.size(1);
  const Tensor norm = zeros({m.channels ? 1 : w.outputs.at("o").size(2), T}, Dtype::f64);
  const View<double> to = view<double>(norm);
  for (int64_t k = 0; k < K; ++k) {
    read.zero();
    read.slice(-1, k, k + 1).fill(1);
    in[reader] = read;
    const Tensor row = op.forward(kernels::Form::chunkwise, in, settings).at("o");
    const Tensor flat = row.reshape({T, norm.size(0), -1});
    const auto o = view<const double>(flat);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t h = 0; h < norm.size(0); ++h)
        for (int64_t i = 0; i < o.size(2); ++i) to(h, t) += o(t, h, i) * o(t, h, i);
  }
  for (int64_t i = 0; i < norm.numel(); ++i)
    norm.data<double>()[i] = std::sqrt(norm.data<double>()[i]);
  m.gates["state"] = norm;
}

void find_gates(const Tensors& in, int64_t T, Mixing& m) {
  const auto of = [&](const char* name) {
    const auto found = in.find(name);
    return found == in.end() ? Tensor() : found->second;
  };
  const auto forget = [](double x) { return std::exp(x); };
  if (const Tensor g = of("g")) m.gates["kept"] = gate_of(g, forget);
  if (const Tensor g = of("log_gamma"))
    m.gates["kept"] = gate_of(g.reshape({1, 1, -1}).expand(1, T).contiguous(), forget);
  if (const Tensor beta = of("beta")) m.gates["beta"] = gate_of(beta, [](double x) { return x; });
  if (const Tensor dt = of("dt")) m.gates["step"] = step_of(dt, of("dt_bias"));
}

thread_local bool finding = false;
struct Finding {
  const bool before = std::exchange(finding, true);
  ~Finding() { finding = before; }
};

}  // namespace

bool finds_mixings() { return finding; }

void watch_mixings(const std::function<void()>& forward,
                   const std::function<void(const Mixing&)>& use) {
  Tensor routes;  // of a router, for what its owner mixes next
  std::string router;
  const autograd::Watch watch([&](const Watched& w) {
    if (w.name == "router") {
      router = w.owner;
      routes = routes_of(w.inputs.at("logits"));
    }
    const char* const values = values_of(w);
    if (!values) return;
    const Tensor& v = w.inputs.at(values);
    if (v.size(1) < w.outputs.at("o").size(1)) return;  // values of blocks: no matrix of tokens
    require_one_text(w, v);
    require(w.inputs.count("initial_state") == 0, w.name,
            ": the text goes on from a state, expected a text from its beginning");
    const Tensors in = in_f64(w.inputs);
    Mixing m;
    m.owner = w.owner;
    m.operation = w.name;
    if (in.count("v") > 0)
      mix_heads(w, in, m);
    else
      mix_channels(w, in, m);
    m.gap = gap_of(m);
    find_gates(in, v.size(1), m);
    find_state(w, in, m);
    if (w.name == "block_sparse" && routes && router == w.owner) m.gates["routes"] = routes;
    use(m);
  });
  const Finding all_along;
  forward();
}

}  // namespace weft::layers
