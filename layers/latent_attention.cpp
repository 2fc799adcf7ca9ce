// Multi-head latent attention: keys and values of all heads are made of one latent vector a token,
// beside a key of a few columns that all heads share and that alone has rotary positions.
//   c_t = norm(W_c x_t),   r_t = rotary(W_r x_t)                    both from kv_a_proj_with_mqa
//   k_t = [W_k c_t, r_t],  v_t = W_v c_t  of each head              both from kv_b_proj
//   q_t = [q_nope, rotary(q_rope)]  of q_proj x_t, or of q_b_proj norm(q_a_proj x_t)
// A generation keeps [c, r] alone. Few tokens meet it as it is, by
//   q . k = (W_k' q_nope) . c + q_rope . r,     sum_s p_s v_s = W_v sum_s p_s c_s,
// so c is key and value of all heads; many tokens have keys and values made of it, which is cheaper
// then. Both are the same sums. Names and wiring as in transformers' DeepseekV3Attention.
// Sources: arXiv:2405.04434 (DeepSeek-V2), 2510.26692 (Kimi: no positions, the shared key stays).
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/attention/attention.h"
#include "kernels/experts/routing.h"
#include "layers/softmax.h"

namespace weft::layers {
namespace {

using autograd::apply;
using autograd::concat;
using autograd::reshape;
using autograd::split;

struct Widths {
  int64_t H, own, shared, value, latent, query;  // query: rank of the queries, 0: full

  Widths(const Spec& spec, const TomlTable& t) {
    H = t.integer("heads", kSize, 4);
    if (!t.has("head_dim") && spec.heads_width() % H != 0)
      t.refuse("heads", H, " heads do not divide the width of ", spec.heads_width(),
               " evenly; set head_dim too, or other heads");
    own = t.integer("head_dim", kSize, spec.heads_width() / H);
    shared = t.integer("shared_width", kSize, std::max<int64_t>(2, own / 4 * 2));
    value = t.integer("value_width", kSize, own);
    latent = t.integer("latent_width", kSize, 4 * own);
    query = t.integer("query_rank", kCount, 0);
  }
  int64_t key() const { return own + shared; }
};

class LatentAttention final : public Layer {
 public:
  LatentAttention(const Spec& spec, const TomlTable& t, const Builder& b)
      : w_(spec, t),
        rotary_(t.boolean("rotary", true)),
        rotation_(positions(t, spec)),
        scale_(t.number("scale", {0, 1e6}, 0)),
        softcap_(t.number("softcap", kCap, 0)),
        kv_a_(b.within("kv_a_proj_with_mqa"), spec.width, w_.latent + w_.shared, spec.init),
        kv_norm_(b.within("kv_a_layernorm"), w_.latent, Norm::Kind::rms, spec.norm_eps,
                 spec.norm_plus_one),
        kv_b_(b.within("kv_b_proj"), w_.latent, w_.H * (w_.own + w_.value), spec.init),
        o_(b.within("o_proj"), w_.H * w_.value, spec.width, spec.residual_init()) {
    const int64_t out = w_.H * w_.key();
    if (w_.query > 0) {
      q_a_.emplace(b.within("q_a_proj"), spec.width, w_.query, spec.init);
      q_norm_.emplace(b.within("q_a_layernorm"), w_.query, Norm::Kind::rms, spec.norm_eps,
                      spec.norm_plus_one);
      q_.emplace(b.within("q_b_proj"), w_.query, out, spec.init);
    } else {
      q_.emplace(b.within("q_proj"), spec.width, out, spec.init);
    }
  }

  Var forward(const Var& x, Context& c) const override {
    const auto q =
        split(heads((*q_)(q_a_ ? (*q_norm_)((*q_a_)(x)) : x), w_.H), 3, {w_.own, w_.shared});
    const auto kv = split(kv_a_(x), 2, {w_.latent, w_.shared});
    const Var turned = placed(q[1], c), own = kv_norm_(kv[0]), shared = placed(heads(kv[1], 1), c);
    if (!c.state) return unfolded(q[0], turned, own, shared, c);
    const Var past = held(own, shared, c);
    if (!folds(x)) {
      const auto parts = split(past, 3, {w_.latent, w_.shared});
      return unfolded(q[0], turned, merged(parts[0]), parts[1], c);
    }
    return folded(q[0], turned, past, c);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const double keys = static_cast<double>(T + 1) / 2;
    return static_cast<double>(w_.H) * kernels::softmax_flops(keys, static_cast<double>(w_.key()),
                                                              static_cast<double>(w_.value))
                                           .forward;
  }

 private:
  kernels::Rotary::Options positions(const TomlTable& t, const Spec& spec) const {
    if (rotary_ && w_.shared % 2 != 0)
      t.refuse("shared_width", "shared_width is ", w_.shared,
               "; rotary positions turn pairs, so it must be even");
    return rotary_positions(t, spec, rotary_, w_.shared);
  }
  Var placed(const Var& x, const Context& c) const {
    return rotary_ ? rotated(x, rotation_, c) : x;
  }

  kernels::Attention::Options options(const Context& c) const {
    kernels::Attention::Options o;
    o.scale = scale_ > 0 ? scale_ : 1 / std::sqrt(static_cast<double>(w_.key()));
    o.softcap = softcap_;
    o.cu_seqlens = c.cu_seqlens;
    o.position = c.place;
    return o;
  }

  // [c, r] of all tokens up to now, [B, S, 1, latent + shared].
  Var held(const Var& own, const Var& shared, Context& c) const {
    const Var latent = reshape(own, {own.size(0), own.size(1), 1, w_.latent});
    std::vector<CachedRows> rows{{"latent", concat({latent, shared}, 3).value()}};
    append(c, rows, /*window=*/0);
    return rows[0].rows;
  }

  // With keys and values of every head: latent [B, S, latent], shared [B, S, 1, shared].
  Var unfolded(const Var& q, const Var& turned, const Var& latent, const Var& shared,
               const Context& c) const {
    const auto kv = split(heads(kv_b_(latent), w_.H), 3, {w_.own, w_.value});
    const std::vector<Var> copies(static_cast<size_t>(w_.H), shared);
    const Var k = concat({kv[0], concat(copies, 2)}, 3), whole = concat({q, turned}, 3);
    return o_(merged(apply<kernels::Attention>({whole, k, kv[1], {}}, options(c)).o));
  }

  // With the latent as the one key and value.
  Var folded(const Var& q, const Var& turned, const Var& past, const Context& c) const {
    const Var kv_b = reshape(kv_b_.weight, {w_.H, w_.own + w_.value, w_.latent});
    const auto weights = split(kv_b, 1, {w_.own, w_.value});
    const Var asked = concat({by_head(q, autograd::transpose(weights[0], 1, 2)), turned}, 3);
    const Var latent = autograd::slice(past, 3, 0, w_.latent);
    const Var o = apply<kernels::Attention>({asked, past, latent, {}}, options(c)).o;
    return o_(merged(by_head(o, weights[1])));
  }

  // x [B, T, H, I] times w [H, O, I] of its head: [B, T, H, O].
  Var by_head(const Var& x, const Var& w) const {
    const int64_t B = x.size(0), T = x.size(1), H = w_.H, rows = B * T;
    const Device device = x.value().device();
    if (!offsets_ || offsets_rows_ != rows || offsets_.device() != device) {
      const Tensor offsets = empty({H + 1}, Dtype::i64);
      for (int64_t h = 0; h <= H; ++h) offsets.data<int64_t>()[h] = h * rows;
      offsets_ = offsets.to(device);
      offsets_rows_ = rows;
    }
    const Var sorted = autograd::transpose(reshape(x, {rows, H, x.size(3)}), 0, 1);
    const Var y = apply<kernels::GroupedMatmul>({reshape(sorted, {H * rows, -1}), w}, {offsets_}).y;
    const Var back = autograd::transpose(reshape(y, {H, rows, y.size(1)}), 0, 1);
    return reshape(back, {B, T, H, y.size(1)});
  }

  // Whether so few tokens as these cost less with the latent than keys and values of all the past.
  bool folds(const Var& x) const {
    constexpr int64_t kWidestOnGpu = 256;
    const int64_t made = w_.own + w_.value, read = 2 * w_.latent - made;
    if (x.value().device().takes_cuda_forms() && w_.latent + w_.shared > kWidestOnGpu) return false;
    return x.size(1) * read <= w_.latent * made;
  }

  Widths w_;
  bool rotary_;
  kernels::Rotary::Options rotation_;
  double scale_, softcap_;
  Linear kv_a_;
  Norm kv_norm_;
  Linear kv_b_, o_;
  std::optional<Linear> q_a_, q_;
  std::optional<Norm> q_norm_;
  mutable Tensor offsets_;  // i64 [H + 1], where the rows of each head begin
  mutable int64_t offsets_rows_ = 0;
};

const RegisteredMixer registered{"latent_attention", maker<LatentAttention>()};

}  // namespace
}  // namespace weft::layers
