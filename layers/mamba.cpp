// The blocks of Mamba and Mamba-2: a state space whose step size, input and output depend on the
// token. Both are a whole sublayer, so recipes usually give them no MLP.
// Weights and wiring as in mamba_ssm and transformers.
// Sources: arXiv:2312.00752 (Mamba), 2403.19887 (Jamba), 2410.05355 (Falcon Mamba), 2405.21060
// (Mamba-2), 2507.22448 (Falcon-H1).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "kernels/linear/linear.h"
#include "kernels/rows/norms.h"
#include "kernels/selective_scan/selective_scan.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

using autograd::multiply_along;
using autograd::split;

// As torch starts a linear map.
Init kaiming(int64_t in, double divisor = 1) {
  const double bound = 1 / std::sqrt(static_cast<double>(in)) / divisor;
  return Init::uniform(-bound, bound);
}

double depth_divisor(const Spec& spec) { return std::sqrt(static_cast<double>(spec.layers)); }

// An RMS norm with a weight, or without one.
class InnerNorm {
 public:
  InnerNorm(const Builder& b, int64_t width, double eps, bool weighted, bool plus_one) : eps_(eps) {
    if (weighted) norm_.emplace(b, width, Norm::Kind::rms, eps, plus_one);
  }
  Var operator()(const Var& x) const {
    if (norm_) return (*norm_)(x);
    const auto y = autograd::apply<kernels::RmsNorm>({rows(x), {}, {}}, {eps_ > 0 ? eps_ : 1e-6});
    return autograd::reshape(y.y, x.shape());
  }

 private:
  double eps_;
  std::optional<Norm> norm_;
};

//   x, z = in_proj u;  x = silu(conv1d x);  dt, B, C = x_proj x;
//   y = out_proj(scan(x, dt_proj dt, B, C) silu(z))
// with norms of dt, B and C where inner_norms = true, as in Jamba; without weights as in Falcon
// Mamba.
class Mamba final : public Layer {
 public:
  Mamba(const Spec& spec, const TomlTable& t, const Builder& b)
      : E_(spec.heads_width() * t.integer("expand", kSize, 2)),
        N_(t.integer("state", kSize, 16)),
        R_(t.integer("dt_rank", kSize, (spec.width + 15) / 16)),
        in_(b.within("in_proj"), spec.width, 2 * E_, kaiming(spec.width)),
        conv_(b, "conv1d", E_, t.integer("conv", kSize, 4), /*bias=*/true),
        x_(b.within("x_proj"), E_, R_ + 2 * N_, kaiming(E_)),
        dt_weight_(b.parameter("dt_proj.weight", {E_, R_}, kaiming(R_))),
        dt_bias_(b.wide().parameter("dt_proj.bias", {E_}, step_init())),
        A_log_(b.wide().parameter("A_log", {E_, N_}, Init::function([N = N_](int64_t i, double) {
                                    return std::log(static_cast<double>(i % N + 1));
                                  }),
                                  /*decay=*/false)),
        D_(b.wide().parameter("D", {E_}, Init::constant(1))),
        out_(b.within("out_proj"), E_, spec.width, kaiming(E_, depth_divisor(spec))) {
    if (!t.boolean("inner_norms", false)) {
      for (const char* key : {"inner_norm_weights", "inner_norm_eps"})
        t.unused(key, "it has no use with inner_norms = false; leave it out",
                 t.overridden("inner_norms"));
      return;
    }
    const bool weighted = t.boolean("inner_norm_weights", true);
    const double given = t.number("inner_norm_eps", {0, 1}, 0),
                 eps = given > 0 ? given : spec.norm_eps;
    const auto norm = [&](std::optional<InnerNorm>& n, const char* name, int64_t width) {
      n.emplace(b.within(name), width, eps, weighted, spec.norm_plus_one);
    };
    norm(dt_norm_, "dt_layernorm", R_);
    norm(b_norm_, "b_layernorm", N_);
    norm(c_norm_, "c_layernorm", N_);
  }

  Var forward(const Var& u, Context& c) const override {
    const auto xz = split(in_(u), 2, {E_, E_});
    const Var x = conv_(xz[0], c);
    const auto parts = split(x_(x), 2, {R_, N_, N_});
    kernels::Inputs<kernels::SelectiveScan, Var> in;
    in.x = x;
    const auto normed = [](const auto& n, const Var& v) { return n ? (*n)(v) : v; };
    in.dt = product(normed(dt_norm_, parts[0]), dt_weight_);
    in.A_log = A_log_;
    in.B = normed(b_norm_, parts[1]);
    in.C = normed(c_norm_, parts[2]);
    in.D = D_;
    in.z = xz[1];
    in.dt_bias = dt_bias_;
    return out_(recurrence<kernels::SelectiveScan>(in, {}, c));
  }

  double flops_per_token(int64_t) const override {
    return static_cast<double>(E_) * kernels::SelectiveScan::flops(static_cast<double>(N_)).forward;
  }

 private:
  int64_t E_, N_, R_;
  Linear in_;
  ShortConv conv_;
  Linear x_;
  Var dt_weight_, dt_bias_, A_log_, D_;
  Linear out_;
  std::optional<InnerNorm> dt_norm_, b_norm_, c_norm_;
};

// Factors of the parts of Mamba-2's projection, and bounds of its step.
class PartScales {
 public:
  // `parts` are the widths of z, x, B, C and dt.
  PartScales(const TomlTable& t, const Builder& b, const std::vector<int64_t>& parts) {
    std::vector<double> factors;
    for (const char* key : {"z_scale", "x_scale", "b_scale", "c_scale", "dt_scale"})
      factors.push_back(t.number(key, kFactor, 1));
    if (std::count(factors.begin(), factors.end(), 1) == 5) return;
    const int64_t all = std::accumulate(parts.begin(), parts.end(), int64_t{0});
    scales_ = b.buffer({all}, [&](int64_t i) {
      size_t part = 0;
      for (; i >= parts[part]; ++part) i -= parts[part];
      return factors[part];
    });
  }
  Var operator()(const Var& x) const { return scales_ ? multiply_along(x, Var(scales_), 2) : x; }

 private:
  Tensor scales_;
};

class StepBounds {
 public:
  StepBounds(const TomlTable& t, const Builder& b, int64_t H)
      : least_(t.number("step_least", kCap, 0)), most_(t.number("step_most", kCap, 0)) {
    if (most_ > 0 && least_ > most_)
      t.refuse("step_least", "step_least is ", least_, ", expected at most step_most, which is ",
               most_);
    const auto all = [&](double x) { return b.wide().buffer({H}, [x](int64_t) { return x; }); };
    if (least_ > 0) low_ = all(least_);
    if (most_ > 0) high_ = all(-most_);
  }
  // max(x, least) = x + relu(least - x), then min(x, most) = x - relu(x - most): what lies between
  // them stays as it is, bit by bit.
  Var operator()(const Var& dt) const {
    Var x = dt;
    const auto negative = [](const Var& v) { return autograd::scale(v, -1); };
    if (low_) x = autograd::add(x, above(autograd::add_along(negative(x), Var(low_), 2)));
    if (high_) x = autograd::add(x, negative(above(autograd::add_along(x, Var(high_), 2))));
    return x;
  }

 private:
  static Var above(const Var& x) { return activation(x, "relu"); }
  double least_, most_;
  Tensor low_, high_;  // [H]: the least step, and minus the largest
};

//   z, x, B, C, dt = in_proj u;  x, B, C = silu(conv1d [x, B, C])
//   y = linear attention of q = C, k = B, v = dt x with log decay -exp(A_log) dt, and D x
//   out_proj(norm(y silu(z))), the norm in groups; or norm(y) silu(z), or y silu(z) without a norm
class Mamba2 final : public Layer {
 public:
  Mamba2(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(sizes(spec, t)),
        E_(size_.H * size_.V),
        in_(b.within("in_proj"), spec.width, 2 * E_ + 2 * size_.Hk * size_.K + size_.H,
            kaiming(spec.width)),
        scales_(t, b, {E_, E_, size_.Hk * size_.K, size_.Hk * size_.K, size_.H}),
        conv_(b, "conv1d", E_ + 2 * size_.Hk * size_.K, t.integer("conv", kSize, 4), /*bias=*/true),
        decay_(b, size_.H, 1, 16),
        bounds_(t, b, size_.H),
        D_(b.wide().parameter("D", {size_.H}, Init::constant(1))) {
    const std::string norm = t.one_of("norm", {"gate_first", "gate_last", "none"}, "gate_first");
    if (norm != "none")
      norm_.emplace(b.within("norm"), E_, t.number("norm_eps", kEpsilon, 1e-5), "silu",
                    norm == "gate_first", size_.Hk);
    else
      t.unused("norm_eps", "it has no use with norm = \"none\"; leave it out",
               t.overridden("norm"));
    out_.emplace(b.within("out_proj"), E_, spec.width, kaiming(E_, depth_divisor(spec)));
  }

  Var forward(const Var& u, Context& c) const override {
    const int64_t GN = size_.Hk * size_.K, H = size_.H;
    const auto parts = split(scales_(in_(u)), 2, {E_, E_ + 2 * GN, H});
    const auto xBC = split(conv_(parts[1], c), 2, {E_, GN, GN});
    const Var x = heads(xBC[0], H), dt = bounds_(decay_.step(parts[2]));
    kernels::Inputs<kernels::Linear, Var> in;
    in.q = heads(xBC[2], size_.Hk);
    in.k = heads(xBC[1], size_.Hk);
    in.v = weighed(x, dt);
    in.g = decay_.log_decay(dt);
    kernels::Linear::Options o;
    o.scale = 1;
    const Var y =
        merged(autograd::add(recurrence<kernels::Linear>(in, o, c), multiply_along(x, D_, 2)));
    return (*out_)(norm_ ? (*norm_)(y, parts[0]) : gated(parts[0], y, "silu"));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Linear>(); }

 private:
  // heads of width `head_dim` with a state of `state`; B and C in `groups`.
  static HeadSizes sizes(const Spec& spec, const TomlTable& t) {
    HeadSizes s;
    s.V = t.integer("head_dim", kSize, std::min<int64_t>(64, spec.heads_width()));
    s.H = t.integer("heads", kCount, 0);
    if (s.H > 0) {
      t.unused("expand", "heads says how many channels there are; leave it out",
               t.overridden("heads"));
    } else {
      const int64_t E = spec.heads_width() * t.integer("expand", kSize, 2);
      if (E % s.V != 0)
        t.refuse("head_dim", "the ", E, " inner channels are no multiple of head_dim = ", s.V);
      s.H = E / s.V;
    }
    s.K = t.integer("state", kSize, 128);
    s.Hk = t.integer("groups", kSize, 1);
    if (s.H % s.Hk != 0) t.refuse("groups", s.H, " heads cannot share ", s.Hk, " groups evenly");
    return s;
  }

  HeadSizes size_;
  int64_t E_;
  Linear in_;
  PartScales scales_;
  ShortConv conv_;
  Decay decay_;
  StepBounds bounds_;
  Var D_;
  std::optional<GatedNorm> norm_;
  std::optional<Linear> out_;
};

const RegisteredMixer mamba{"mamba", maker<Mamba>()};
const RegisteredMixer mamba2{"mamba2", maker<Mamba2>()};

}  // namespace
}  // namespace weft::layers
