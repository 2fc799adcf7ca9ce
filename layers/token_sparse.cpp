// Softmax attention over patterns that are exact to the token:
//   dilated   of every `stride`-th token back, `window` of them; stride = 1 is a sliding window
//   strided   every `stride`-th token back, to the start
//   random    the token itself and `random_tokens` others, drawn for each layer, head and position
// and, with global_tokens, the first tokens of the text too, each pair once. With
// global_projections what those tokens see of one another comes of projections of their own
// (arXiv:2004.05150): all that is before them, as a causal model goes. Heads with other patterns
// stand beside these by side_by_side.
//
// Tokens with the same place modulo `stride` see their neighbours among themselves: so dilated and
// strided heads are attention on such classes, each a row of a batch. Random tokens, global ones of
// packed documents and the past of a single token are gathered by lists. The cost is that of the
// pairs seen; on a GPU a list takes a tile of its own, which holds 64 queries.
// Sources: arXiv:1904.10509 (strided), 2004.05150 (dilated, global), 2007.14062 (random).
#include <algorithm>
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/attention/attention.h"
#include "kernels/block_sparse/block_sparse.h"
#include "kernels/experts/routing.h"
#include "kernels/generation/cache.h"
#include "kernels/selection/token_lists.h"
#include "layers/mixing.h"
#include "layers/softmax.h"

namespace weft::layers {
namespace {

using autograd::apply;
using autograd::reshape;
using autograd::slice;
using autograd::transpose;
using Heads = HeadProjections::Result;
using kernels::TokenRule;

// o [B, T, H, V] and its log-sum-exp [B, T, H].
struct Seen {
  Var o, lse;
};

struct Pattern {
  enum Kind { dilated, strided, random } kind;
  int64_t window = 0, stride = 1, count = 0, global = 0;
  uint64_t seed = 1;

  explicit Pattern(const TomlTable& t) {
    const std::string name = t.one_of("pattern", {"dilated", "strided", "random"}, "dilated");
    kind = name == "dilated" ? dilated : name == "strided" ? strided : random;
    const auto of = [&](bool used, const char* key, const Integers& range, int64_t standard) {
      if (used) return t.integer(key, range, standard);
      t.unused(key, concat("the pattern \"", name, "\" has none; choose another pattern"),
               t.overridden("pattern"));
      return int64_t{0};
    };
    window = of(kind == dilated, "window", kSize, 64);
    stride = of(kind != random, "stride", kSize, kind == dilated ? 2 : 8);
    count = of(kind == random, "random_tokens", kSize, 16);
    global = of(kind != random, "global_tokens", kCount, 0);
    seed = static_cast<uint64_t>(of(kind == random, "pattern_seed", kCount, 1));
  }
  // Rows of a cache that later tokens may see: 0: all.
  int64_t kept() const { return kind == dilated ? window * stride : 0; }

  double keys_of(int64_t i) const {
    const double back = static_cast<double>(i);
    if (kind == random) return 1 + std::min(back, static_cast<double>(count));
    const double all = static_cast<double>(i / stride + 1);
    return (kind == strided ? all : std::min(all, static_cast<double>(window))) +
           std::min(back, static_cast<double>(global));
  }
};

// Zeros before and after along dimension 1.
Var padded(const Var& x, int64_t before, int64_t after) {
  if (before + after == 0) return x;
  Shape shape = x.shape();
  std::vector<Var> parts;
  const auto add_zeros = [&](int64_t n) {
    shape[1] = n;
    if (n > 0) parts.emplace_back(zeros(shape, x.dtype(), x.value().device()));
  };
  add_zeros(before);
  parts.push_back(x);
  add_zeros(after);
  return autograd::concat(parts, 1);
}

// [B, n d, H, K] to [B d, n, H, K] and back: a row of the batch for each class modulo d.
Var to_classes(const Var& x, int64_t d) {
  const int64_t B = x.size(0), n = x.size(1) / d, H = x.size(2), K = x.size(3);
  return reshape(transpose(reshape(x, {B, n, d, H, K}), 1, 2), {B * d, n, H, K});
}
Var from_classes(const Var& x, int64_t d) {
  const int64_t B = x.size(0) / d, n = x.size(1), H = x.size(2), K = x.size(3);
  return reshape(transpose(reshape(x, {B, d, n, H, K}), 1, 2), {B, n * d, H, K});
}

Var taken(const Var& x, const Tensor& index) {
  return apply<kernels::PermuteRows>({x, {}}, {index}).y;
}

class TokenSparse final : public Layer {
 public:
  TokenSparse(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        pattern_(t),
        softcap_(t.number("softcap", kCap, 0)),
        layer_(static_cast<uint64_t>(spec.layer)) {
    if (pattern_.global == 0) {
      t.unused("global_projections", "it has no use without global_tokens; leave it out",
               t.overridden("global_tokens"));
      return;
    }
    if (!t.boolean("global_projections", false)) return;
    const int64_t K = heads_.K();
    q_.emplace(b.within("q_global_proj"), spec.width, heads_.H() * K, spec.init);
    k_.emplace(b.within("k_global_proj"), spec.width, heads_.Hk() * K, spec.init);
    v_.emplace(b.within("v_global_proj"), spec.width, heads_.Hk() * K, spec.init);
  }

  Var forward(const Var& x, Context& c) const override {
    const Heads own = heads_.of(x, c);
    if (finds_mixings() && !c.state) return heads_.out(pictured(own, x, c), own.gate);
    if (pattern_.kind == Pattern::random) {
      const Heads all = heads_.behind_past(own, c, /*window=*/0);
      return heads_.out(listed(all, drawn(), grid_of(all, c), heads_.H()).o, own.gate);
    }
    const Heads first = pattern_.global > 0 ? leading(own, "first", c) : Heads{};
    Var o = joined(own, first, c);
    if (q_) o = with_leaders(o, x, c);
    return heads_.out(o, own.gate);
  }

  double flops_per_token(int64_t T) const override {
    double keys = 0;
    for (int64_t i = 0; i < T; ++i) keys += pattern_.keys_of(i);
    const double K = static_cast<double>(heads_.K());
    return static_cast<double>(heads_.H()) *
           kernels::softmax_flops(keys / static_cast<double>(T), K, K).forward;
  }

 private:
  kernels::Attention::Options options(const Context& c, int64_t window) const {
    kernels::Attention::Options o;
    o.scale = heads_.scale();
    o.window = window;
    o.softcap = softcap_;
    o.cu_seqlens = c.cu_seqlens;
    return o;
  }
  TokenRule drawn() const {
    return {TokenRule::random, pattern_.count + 1, 1, 0, pattern_.seed, layer_};
  }
  // Where the rows of x stand; keys are those of a cache that ends with them, or a ring.
  static kernels::TokenGrid grid_of(const Heads& x, const Context& c) {
    const int64_t T = x.q.size(1), S = x.k.size(1);
    return {x.q.size(0), T, S, c.position, c.position + T - S, c.cu_seqlens, c.place};
  }

  // The same by masks of all pairs: operations of one row, whose matrix of tokens can be found.
  Var pictured(const Heads& own, const Var& x, const Context& c) const {
    const int64_t T = x.size(1), d = pattern_.stride;  // no stride where tokens are drawn
    const kernels::TokenGrid grid = grid_of(own, c);
    std::vector<TokenRule> rules{pattern_.kind == Pattern::random ? drawn()
                                                                  : back((T + d - 1) / d)};
    if (pattern_.global > 0) rules.push_back(globals(T));
    const auto masked = [&](const Heads& y, const Tensor& mask) {
      kernels::BlockSparse::Options o;
      o.block_mask = mask;
      o.block = 1;
      o.by_token = true;
      o.scale = heads_.scale();
      o.softcap = softcap_;
      o.cu_seqlens = c.cu_seqlens;
      return apply<kernels::BlockSparse>({y.q, y.k, y.v}, o).o;
    };
    const int64_t lists = pattern_.kind == Pattern::random ? heads_.H() : 1;
    const Tensor mask = kernels::token_mask(rules, grid, lists);
    if (!q_) return masked(own, mask);
    mask.slice(2, 0, std::min(T, pattern_.global)).zero();
    return autograd::add(masked(own, mask),
                         masked(led(x, c), kernels::token_mask({leaders(T)}, grid, 1)));
  }
  // Every stride-th token back, of `all` that there may be.
  TokenRule back(int64_t all) const {
    const bool band = pattern_.kind == Pattern::dilated;
    return {
        TokenRule::every, band ? std::min(pattern_.window, all) : all, pattern_.stride, 0, 0, 0};
  }
  // Of the global tokens, those that a cache or text of S keys has.
  TokenRule globals(int64_t S) const {
    return {TokenRule::first, std::min(S, pattern_.global), pattern_.stride, pattern_.window, 0, 0};
  }
  TokenRule leaders(int64_t S) const {
    return {TokenRule::leader, std::min(S, pattern_.global), 1, 0, 0, 0};
  }
  Heads led(const Var& x, const Context& c) const {
    return heads_.placed({heads((*q_)(x), heads_.H()),
                          heads((*k_)(x), heads_.Hk()),
                          heads((*v_)(x), heads_.Hk()),
                          {}},
                         c);
  }

  // Attention of each query over its list. heads: 1, or the query heads, whose lists differ.
  Seen listed(const Heads& x, const TokenRule& rule, const kernels::TokenGrid& grid,
              int64_t heads) const {
    const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2), K = x.q.size(3);
    const int64_t Hk = heads == 1 ? 1 : x.k.size(2), R = B * T * heads;
    const int64_t own = H / heads, keys = x.k.size(2) / Hk;  // heads of a row of the lists
    const auto lists = kernels::token_lists(rule, grid, heads, Hk, x.q.value().device());
    kernels::BlockSparse::Options o;
    o.block = 1;
    o.by_token = true;
    o.causal = false;
    o.scale = heads_.scale();
    o.softcap = softcap_;
    const bool same = rule.kind == TokenRule::first || rule.kind == TokenRule::leader;
    if (same && !grid.cu_seqlens) {  // place n is row n for all: nothing is gathered
      o.block_mask = lists.mask.reshape({B, 1, T, rule.count});
      const auto y = apply<kernels::BlockSparse>(
          {x.q, slice(x.k, 1, 0, rule.count), slice(x.v, 1, 0, rule.count)}, o);
      return {y.o, transpose(y.lse, 1, 2)};
    }
    const auto gathered = [&](const Var& y) {
      const Var rows = reshape(y, {y.size(0) * y.size(1) * Hk, keys * y.size(3)});
      return reshape(taken(rows, lists.index), {R, rule.count, keys, y.size(3)});
    };
    o.block_mask = lists.mask;
    const auto y = apply<kernels::BlockSparse>(
        {reshape(x.q, {R, 1, own, K}), gathered(x.k), gathered(x.v)}, o);
    return {reshape(y.o, {B, T, H, K}), reshape(y.lse, {B, T, H})};
  }

  // The pattern's own band.
  Seen band(const Heads& own, Context& c) const {
    const Heads x = heads_.behind_past(own, c, pattern_.kept());
    if (c.state && x.q.size(1) == 1) {
      const int64_t d = pattern_.stride, S = x.k.size(1);
      return listed(x, back((S + d - 1) / d), grid_of(x, c), 1);
    }
    if (pattern_.stride == 1) return direct(x, options(c, pattern_.window));
    return c.cu_seqlens ? in_documents(x, c) : in_classes(x, c);
  }
  static Seen direct(const Heads& x, const kernels::Attention::Options& o) {
    const auto y = apply<kernels::Attention>({x.q, x.k, x.v, {}}, o);
    return {y.o, transpose(y.lse, 1, 2)};
  }
  // Queries and keys are cut into classes from their ends on; what pads queries is dropped.
  Seen in_classes(const Heads& x, const Context& c) const {
    const int64_t B = x.q.size(0), T = x.q.size(1), S = x.k.size(1), d = pattern_.stride;
    const int64_t after = (d - S % d) % d;
    const int64_t before = std::min((d - (T + after) % d) % d, S - T), n = (before + T + after) / d;
    const auto cut = [&](const Var& y, int64_t front) {
      return to_classes(padded(y, front, after), d);
    };
    const Seen y =
        direct({cut(x.q, before), cut(x.k, 0), cut(x.v, 0), {}}, options(c, pattern_.window));
    const int64_t H = x.q.size(2);
    const Var lse = from_classes(reshape(y.lse, {B * d, n, H, 1}), d);
    return {slice(from_classes(y.o, d), 1, before, before + T),
            reshape(slice(lse, 1, before, before + T), {B, T, H})};
  }
  Seen in_documents(const Heads& x, const Context& c) const {
    const int64_t T = x.q.size(1), H = x.q.size(2);
    const auto order = kernels::class_order(c.cu_seqlens, T, pattern_.stride, x.q.value().device());
    const auto moved = [&](const Var& y, const Tensor& index) {
      return reshape(taken(reshape(y, {T, -1}), index), y.shape());
    };
    kernels::Attention::Options o = options(c, pattern_.window);
    o.cu_seqlens = order.borders;
    const Seen y =
        direct({moved(x.q, order.order), moved(x.k, order.order), moved(x.v, order.order), {}}, o);
    return {moved(y.o, order.back),
            reshape(moved(reshape(y.lse, {1, T, H, 1}), order.back), {1, T, H})};
  }

  // Band and global tokens in one softmax: each weighs what it gives by its share of the sum.
  Var joined(const Heads& own, const Heads& first, Context& c) const {
    const Seen near = band(own, c);
    if (pattern_.global == 0) return near.o;
    const Seen far = listed(first, globals(first.k.size(1)), leading_grid(first, c), 1);
    const Var share =
        activation(wide(autograd::add(near.lse, autograd::scale(far.lse, -1))), "sigmoid");
    const Var gap = autograd::add(near.o, autograd::scale(far.o, -1));
    return autograd::add(far.o, weighed(gap, share));
  }

  // Keys and values of the first tokens: all of x without a state, else what the state keeps of
  // them, one row more than they are, in which later tokens end.
  Heads leading(const Heads& own, const std::string& name, const Context& c) const {
    if (!c.state) return own;
    Heads x = own;
    x.k = pinned(own.k.value(), name + "_k", c);
    x.v = pinned(own.v.value(), name + "_v", c);
    return x;
  }
  Tensor pinned(const Tensor& rows, const std::string& name, const Context& c) const {
    const int64_t g = pattern_.global;
    Tensor& kept = c.state->tensors[name];
    Shape shape = rows.shape();
    shape[1] = g + 1;
    if (!kept) kept = zeros(shape, rows.dtype(), rows.device());
    if (c.place) {
      kernels::put_row(kept, rows, kernels::at_most(c.place, g));
    } else if (const int64_t n = std::min(g - c.position, rows.size(1)); n > 0) {
      kept.slice(1, c.position, c.position + n).copy_from(rows.slice(1, 0, n));
    }
    return kept;
  }
  kernels::TokenGrid leading_grid(const Heads& first, const Context& c) const {
    kernels::TokenGrid grid = grid_of(first, c);
    grid.from = 0;
    return grid;
  }

  // The first tokens have what their own projections give, in place of the rest.
  Var with_leaders(const Var& o, const Var& x, const Context& c) const {
    const Heads first = leading(led(x, c), "leader", c);
    const kernels::TokenGrid grid = leading_grid(first, c);
    const Var theirs = listed(first, leaders(first.k.size(1)), grid, 1).o;
    const Tensor there =
        kernels::leading_tokens(pattern_.global, grid, o.dtype(), o.value().device());
    return autograd::add(o, weighed(autograd::add(theirs, autograd::scale(o, -1)), Var(there)));
  }

  HeadProjections heads_;
  Pattern pattern_;
  double softcap_;
  uint64_t layer_;
  std::optional<Linear> q_, k_, v_;  // of global tokens
};

const RegisteredMixer registered{"token_sparse", maker<TokenSparse>()};

}  // namespace
}  // namespace weft::layers
