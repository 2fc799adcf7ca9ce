// Layers for tests: a mixer or MLP from a few lines of TOML, with weights at which every term
// counts.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/random.h"
#include "kernels/contract/operation.h"
#include "layers/blocks.h"
#include "layers/layer.h"
#include "tests/gap.h"

namespace weft::layers {

struct MixerCase {
  std::string name, mixer, toml;
  int64_t width = 12;
  int64_t layer = 0;  // of 2
};

// At least one for each mixer and each setting that changes what it computes.
inline const std::vector<MixerCase>& mixer_cases() {
  static const std::vector<MixerCase> cases = {
      {"attention", "attention", "heads = 3\nhead_dim = 4"},
      {"attention, groups, no rotary", "attention", "heads = 4\nkey_heads = 2\nrotary = false"},
      {"attention, window", "attention", "heads = 2\nkey_heads = 1\nwindow = 5"},
      {"attention, window of one", "attention", "heads = 2\nwindow = 1"},
      {"attention, all settings", "attention",
       "heads = 4\nkey_heads = 2\nhead_dim = 6\nwindow = 9\nrotary_base = 100\nsoftcap = 2.0\n"
       "sinks = true\nqk_norm = true\nbias = true"},
      {"attention, output gate, a part turned in neighbours", "attention",
       "heads = 3\nkey_heads = 1\nhead_dim = 8\nrotary_fraction = 0.5\nrotary_interleaved = true\n"
       "output_gate = true\nqk_norm = true\nqk_norm_whole = true\nscale = 0.4"},
      {"attention, YaRN", "attention",
       "heads = 2\nhead_dim = 8\nrotary_base = 20\nrotary_scaling = \"yarn\"\nrotary_factor = 4\n"
       "rotary_context = 16\nrotary_fast = 2\nrotary_slow = 0.5\nrotary_truncate = false\n"
       "rotary_magnitude = 1.3"},
      {"attention, window, Llama 3's scaling, gate", "attention",
       "heads = 2\nwindow = 7\nrotary_base = 100\nrotary_scaling = \"llama3\"\nrotary_factor = 8\n"
       "rotary_context = 16\noutput_gate = true\nbias = true"},
      {"attention, linear scaling", "attention",
       "heads = 2\nrotary_scaling = \"linear\"\nrotary_factor = 3"},
      {"block_sparse", "block_sparse", "heads = 2\nblock = 4"},
      {"block_sparse, window", "block_sparse",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\npattern = \"window\"\nblock = 3\nwindow_blocks = "
       "2\n"
       "softcap = 3.0\nqk_norm = true\nbias = true\nrotary = false"},
      {"block_sparse, density by depth", "block_sparse",
       "heads = 2\nblock = 4\npattern = \"window\"\ndensity = {first = 0.2, last = 0.5}"},
      {"block_sparse, output gate", "block_sparse",
       "heads = 2\nblock = 4\noutput_gate = true\nscale = 0.7\nrotary_interleaved = true"},
      {"block_sparse, dilated", "block_sparse",
       "heads = 2\npattern = \"dilated\"\nblock = 2\nstride = 3"},
      {"block_sparse, strided", "block_sparse",
       "heads = 2\npattern = \"strided\"\nblock = 5\nstride = 3"},
      {"block_sparse, random", "block_sparse", "heads = 2\npattern = \"random\"\nblock = 4"},
      {"block_sparse, longformer", "block_sparse",
       "heads = 2\npattern = \"longformer\"\nblock = 4\nglobal_blocks = 2"},
      {"moba", "moba", "heads = 2\nblock = 4\ntop_k = 3"},
      {"moba, all settings", "moba",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 3\ntop_k = 2\nsoftcap = 3.0\nqk_norm = "
       "true\n"
       "bias = true\nrotary = false"},
      {"moba, standard", "moba", "heads = 2"},
      {"topk", "topk", "heads = 2\nblock = 4\ntop_k = 3"},
      {"topk, all settings", "topk",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 3\ntop_k = 5\nfirst_blocks = "
       "2\nrecent_blocks = "
       "2\nindex_width = 3\nsoftcap = 3.0\nqk_norm = true\nbias = true\nrotary = false"},
      {"topk, no first block", "topk", "heads = 2\nblock = 5\ntop_k = 2\nfirst_blocks = 0"},
      {"router", "router", "heads = 2\nblock = 4\ntop_k = 3"},
      {"router, delta, groups, hard from the first step", "router",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 3\nwindow_blocks = 1\ntop_k = 2\n"
       "linear = \"gated_delta\"\nbudget = 0.5\nprice = 3\nsoft_steps = 0\nanneal_steps = 0\n"
       "temperature = 0.5\nsoftcap = 3.0\nqk_norm = true\nbias = true\nrotary = false"},
      {"router, no linear path", "router",
       "heads = 2\nkey_heads = 1\nblock = 5\nlinear = \"none\"\nprice = 0\n"
       "output_gate = true"},
      {"document_router", "document_router",
       "heads = 2\nblock = 4\nopening = 8\npatterns = [1, 2, 16]"},
      {"document_router, no key, groups, hard from the first step", "document_router",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 3\nopening = 6\npatterns = [0, 1, 3]\n"
       "first_blocks = 0\nbudget = 0.5\nprice = 3\nsoft_steps = 0\nanneal_steps = 0\n"
       "temperature = 0.5\nsoftcap = 3.0\nqk_norm = true\nbias = true\nrotary = false"},
      {"document_router, standard", "document_router", "heads = 2\noutput_gate = true"},
      {"side_by_side", "side_by_side", "", 16},
      {"side_by_side, groups of heads", "side_by_side",
       "parts = [\"window\", \"gated_delta\", \"moba\"]\nshares = [2, 1, 1]\n"
       "[window]\ntype = \"attention\"\nheads = 3\nwindow = 5\n"
       "[gated_delta]\nheads = 1\n[moba]\nheads = 1\nrotary = false\nblock = 4\ntop_k = 2"},
      {"side_by_side, norms, a window and a scan", "side_by_side",
       "parts = [\"window\", \"mamba\"]\njoin = \"mean\"\nnorm = true\n"
       "[window]\ntype = \"attention\"\nheads = 2\nwindow = 5\ninput_scale = 0.5\n"
       "[mamba]\nstate = 3\noutput_scale = 0.7"},
      {"latent_attention", "latent_attention", "heads = 2"},
      {"latent_attention, all settings", "latent_attention",
       "heads = 3\nhead_dim = 4\nshared_width = 6\nvalue_width = 5\nlatent_width = 7\n"
       "query_rank = 5\nscale = 0.4\nsoftcap = 3.0\nrotary_base = 100\n"
       "rotary_interleaved = true"},
      {"latent_attention, no positions, wide latents", "latent_attention",
       "heads = 2\nhead_dim = 3\nshared_width = 1\nlatent_width = 40\nrotary = false"},
      {"nsa", "nsa", "heads = 2\nblock = 4\ntop_k = 4\nwindow = 5"},
      {"nsa, all settings", "nsa",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 3\ntop_k = 2\nfirst_blocks = 0\n"
       "recent_blocks = 1\nwindow = 7\nsoftcap = 3.0\nqk_norm = true\nbias = true\n"
       "scale = 0.4\nrotary = false\noutput_gate = true"},
      {"token_sparse", "token_sparse", "heads = 2\nwindow = 5"},
      {"token_sparse, every third", "token_sparse",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nwindow = 3\nstride = 3\nsoftcap = 3.0\n"
       "qk_norm = true\nbias = true\nrotary = false\noutput_gate = true\nscale = 0.5"},
      {"token_sparse, global tokens", "token_sparse",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\nwindow = 4\nstride = 1\nglobal_tokens = 3"},
      {"token_sparse, global projections", "token_sparse",
       "heads = 2\nwindow = 3\nstride = 2\nglobal_tokens = 2\nglobal_projections = true"},
      {"token_sparse, strided", "token_sparse",
       "heads = 2\npattern = \"strided\"\nstride = 5\nglobal_tokens = 1"},
      {"token_sparse, random", "token_sparse",
       "heads = 4\nkey_heads = 2\nhead_dim = 4\npattern = \"random\"\nrandom_tokens = 5\n"
       "pattern_seed = 3"},
      {"linear_attention", "linear_attention", "heads = 3"},
      {"linear_attention, groups, relu, no divisor", "linear_attention",
       "heads = 4\nkey_heads = 2\nfeature_map = \"relu\"\nnormalize = false\nvalue_width = 5"},
      {"linear_attention, no feature map", "linear_attention",
       "heads = 2\nfeature_map = \"none\"\noutput_norm = true"},
      {"linear_attention, relu", "linear_attention",
       "heads = 2\nfeature_map = \"relu\"\neps = 0.01"},
      {"linear_attention, favor+", "linear_attention",
       "heads = 2\nfeature_map = \"favor+\"\nfeatures = 7"},
      {"linear_attention, favor+, all settings", "linear_attention",
       "heads = 4\nkey_heads = 2\nkey_width = 5\nvalue_width = 3\nfeature_map = \"favor+\"\n"
       "features = 9\northogonal = false\nredraw = 0\noutput_norm = true\nnorm_eps = 1e-3"},
      {"linear_attention, trigonometric", "linear_attention",
       "heads = 4\nkey_heads = 2\nfeature_map = \"trigonometric\"\nfeatures = 5"},
      {"linear_attention, cosine", "linear_attention",
       "heads = 2\nfeature_map = \"cosine\"\nhorizon = 256\neps = 0.01"},
      {"linear_attention, cosine, learned, no divisor", "linear_attention",
       "heads = 4\nkey_heads = 2\nfeature_map = \"cosine\"\nhorizon = 300\n"
       "learned_horizon = true\nnormalize = false"},
      {"linear_attention, t2r", "linear_attention",
       "heads = 4\nkey_heads = 2\nfeature_map = \"t2r\"\neps = 0.01"},
      {"linear_attention, t2r, more features", "linear_attention",
       "heads = 2\nfeature_map = \"t2r\"\nfeatures = 7\neps = 0.01"},
      {"fast_weights", "fast_weights", "heads = 2"},
      {"fast_weights, all settings", "fast_weights",
       "heads = 4\nkey_heads = 2\nkey_width = 5\nvalue_width = 3\nfeature_map = \"relu\"\n"
       "alpha = \"softplus\"\nnormalize = true\neps = 0.1\noutput_norm = true"},
      {"fast_weights, favor+", "fast_weights", "heads = 2\nfeature_map = \"favor+\"\nfeatures = 5"},
      {"retention", "retention", "heads = 2"},
      {"retention, groups", "retention",
       "heads = 4\nkey_heads = 2\nkey_width = 4\nvalue_width = 3\nnorm_eps = 1e-3"},
      {"lightning", "lightning", "heads = 2"},
      {"lightning, all settings", "lightning",
       "heads = 4\nkey_heads = 2\nkey_width = 5\nvalue_width = 3\nnorm_eps = 1e-3"},
      {"simple_gla", "simple_gla", "heads = 2"},
      {"simple_gla, no convolution, bias of the gate", "simple_gla",
       "heads = 2\nkey_heads = 1\nconv = 0\nnorm_eps = 1e-3\ngate_bias = true"},
      {"gated_linear", "gated_linear", "heads = 2\ngate_rank = 3"},
      {"gated_linear, groups", "gated_linear",
       "heads = 4\nkey_heads = 2\ngate_rank = 2\nkey_width = 3\nnorm_eps = 1e-3\ngate_bias = true"},
      {"hgrn2", "hgrn2", "heads = 2"},
      {"hgrn2, all settings", "hgrn2",
       "heads = 3\nkey_width = 2\nvalue_width = 5\nlower_bound = 0.3\nnorm_eps = 1e-3"},
      {"delta", "delta", "heads = 2"},
      {"delta, all settings", "delta",
       "heads = 4\nkey_heads = 2\nkey_width = 3\nvalue_width = 5\nconv = 2\nuse_gate = true\n"
       "negative_eigenvalues = true\ngate_bias = true"},
      {"gated_delta", "gated_delta", "heads = 2"},
      {"gated_delta, no convolution, no gate", "gated_delta",
       "heads = 2\nkey_heads = 1\nconv = 0\nuse_gate = false"},
      {"gated_conv", "gated_conv", ""},
      {"gated_conv, biases, four taps", "gated_conv", "conv = 4\nbias = true"},
      {"mamba", "mamba", "state = 3"},
      {"mamba, other sizes", "mamba", "state = 2\nexpand = 1\nconv = 2\ndt_rank = 3"},
      {"mamba, inner norms", "mamba", "state = 3\ndt_rank = 2\ninner_norms = true"},
      {"mamba, inner norms without weights", "mamba",
       "state = 3\ndt_rank = 2\ninner_norms = true\ninner_norm_weights = false\n"
       "inner_norm_eps = 0.01"},
      {"mamba2", "mamba2", "head_dim = 6\nstate = 3"},
      {"mamba2, heads, factors, a bounded step, no norm", "mamba2",
       "head_dim = 3\nheads = 5\nstate = 2\nnorm = \"none\"\nz_scale = 0.5\nx_scale = 1.5\n"
       "b_scale = 0.75\nc_scale = 1.25\ndt_scale = 0.8\nstep_least = 0.05\nstep_most = 0.9"},
      {"mamba2, norm before the gate", "mamba2",
       "head_dim = 6\nstate = 3\ngroups = 2\nnorm = \"gate_last\""},
      {"mamba2, groups", "mamba2",
       "head_dim = 3\nstate = 2\ngroups = 2\nconv = 3\nnorm_eps = 1e-3"},
      {"kda", "kda", "heads = 2"},
      {"kda, all settings", "kda",
       "heads = 4\nkey_heads = 2\nkey_width = 3\nvalue_width = 5\nconv = 2\ngate_rank = 2\n"
       "negative_eigenvalues = true\nnorm_eps = 1e-3"},
  };
  return cases;
}

struct Made {
  std::vector<Parameter> parameters;
  std::unique_ptr<Layer> layer;
};

// Weights of the size 1 / sqrt(inputs), norms and other vectors moved off where they start.
inline void stir(std::vector<Parameter>& parameters, double vectors = 0.3) {
  for (const Parameter& p : parameters) {
    const Tensor& t = p.var.value();
    if (t.is_meta()) continue;
    const bool matrix = t.dims() > 1 && p.decay;
    const double size = matrix ? 1 / std::sqrt(static_cast<double>(t.size(-1))) : vectors;
    const Tensor noise = kernels::normal(t.shape(), 7, p.name, size).to(t.dtype()).to(t.device());
    if (matrix) t.zero();
    t.add_from(noise);
  }
}

inline Made made(const MixerCase& c, Dtype dtype = Dtype::f64, Device device = kCpu,
                 int64_t context = 64) {
  Made m;
  Spec spec;
  spec.width = c.width;
  spec.context = context;
  spec.layer = c.layer;
  spec.layers = 2;
  const Builder b(dtype, device, 3, &m.parameters);
  const TomlTable table = toml_from_text(c.toml, c.name);
  m.layer = mixer_maker(c.mixer)(spec, table, b);
  table.finish();
  stir(m.parameters);
  return m;
}

inline Tensor sample(const Shape& shape, const std::string& name, Dtype dtype = Dtype::f64) {
  return kernels::normal(shape, 11, name).to(dtype);
}

inline Var run(const Layer& layer, const Var& x, const Tensor& cu_seqlens = {}) {
  Context c;
  c.cu_seqlens = cu_seqlens;
  return layer.forward(x, c);
}

// <weight, y> for fixed random weights, as a Var.
inline Var weighted(const Var& y) {
  return autograd::sum(
      autograd::multiply(y, Var(kernels::normal(y.shape(), 13, "weight").to(y.dtype()))));
}

// Finite differences of `loss` over x (if given) and every parameter; large tensors along random
// directions, at up to three steps. What fails at a large step by a kink nearby (elu1, relu) or by
// curvature, and at a small one by rounding, passes between; a wrong gradient passes nowhere.
inline autograd::GradcheckReport check_gradients(const std::function<Var()>& loss, const Var& x,
                                                 const std::vector<Parameter>& parameters,
                                                 int64_t largest = 40) {
  for (const Parameter& p : parameters) p.var.drop_grad();
  if (x) x.drop_grad();
  autograd::backward(loss());
  const auto value = [&] {
    const autograd::NoGrad no_grad;
    return loss().value().item();
  };
  autograd::GradcheckReport report;
  const auto check = [&](const std::string& name, const Var& v) {
    autograd::GradcheckOptions o;
    if (v.value().numel() > largest) o.directions = 3;
    const Tensor gradient = v.grad() ? v.grad() : zeros_like(v.value());
    autograd::InputReport best;
    for (const double step : {3e-4, 3e-5, 3e-6}) {
      o.step = step;
      const auto r = autograd::check_input(name, value, v.value(), gradient, o);
      if (step == 3e-4 || r.max_rel < best.max_rel) best = r;
      if (best.passed) break;
    }
    report.inputs.push_back(best);
  };
  if (x) check("x", x);
  for (const Parameter& p : parameters) check(p.name, p.var);
  return report;
}

// What did not pass.
inline std::string failures(autograd::GradcheckReport report) {
  std::erase_if(report.inputs, [](const autograd::InputReport& r) { return r.passed; });
  return report.text();
}

// max |a - b| / max |b|
inline double distance(const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape(), "distance of ", a.shape(), " and ", b.shape());
  return tests::gap(a, b).relative();
}

// A prompt of x [1, T, D] at once, then a token at a time. `placed`: the work reads a step's
// position where it lies, as in a graph that is recorded once. The largest distance of the prompt
// or a step from the whole text's.
inline double distance_of_steps(const Layer& layer, const Tensor& x, int64_t prompt, State& state,
                                bool placed) {
  const autograd::NoGrad no_grad;
  const Tensor whole = run(layer, x).value();
  const int64_t T = x.size(1);
  Context c;
  c.state = &state;
  c.capacity = T;
  const Tensor first = layer.forward(x.slice(1, 0, prompt).contiguous(), c).value();
  double most = distance(first, whole.slice(1, 0, prompt));
  if (placed) c.place = tensor_of<int32_t>({static_cast<int32_t>(prompt)});
  c.position = prompt;
  for (int64_t t = prompt; t < T; ++t) {
    if (placed)
      c.place.data<int32_t>()[0] = static_cast<int32_t>(t);
    else
      c.position = t;
    const Tensor y = layer.forward(x.slice(1, t, t + 1).contiguous(), c).value();
    const double apart = distance(y, whole.slice(1, t, t + 1));
    most = std::isnan(most) || apart <= most ? most : apart;
  }
  return most;
}
inline double distance_of_placed_steps(const Layer& layer, const Tensor& x, int64_t prompt,
                                       State& state) {
  return distance_of_steps(layer, x, prompt, state, /*placed=*/true);
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && to_doubles(a) == to_doubles(b);
}

// What the allocator counts at most above where it stands, while f runs.
inline int64_t peak_of(Device device, const std::function<void()>& f) {
  Allocator& a = allocator(device);
  const int64_t before = a.stats().current;
  a.reset_peak();
  f();
  return a.stats().peak - before;
}

}  // namespace weft::layers
