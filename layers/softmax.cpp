#include "layers/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "autograd/ops.h"
#include "core/text.h"

#include "kernels/generation/cache.h"

namespace weft::layers {
namespace {

bool biased(const TomlTable& t) { return t.boolean("bias", false); }

// head_dim, before anything is made that would not fit.
int64_t head_width(const Spec& spec, const TomlTable& t, int64_t H, int64_t Hk, bool rotary) {
  if (H % Hk != 0) t.refuse("key_heads", H, " heads cannot share ", Hk, " key heads evenly");
  if (!t.has("head_dim") && spec.heads_width() % H != 0)
    t.refuse("heads", H, " heads do not divide the width of ", spec.heads_width(),
             " evenly; set head_dim too, or other heads");
  const int64_t K = t.integer("head_dim", kSize, spec.heads_width() / H);
  if (rotary && K % 2 != 0)
    t.refuse("head_dim", "head_dim is ", K, "; rotary positions turn pairs, so it must be even");
  return K;
}

// Says that the keys have no use where `other` has that value.
void without(const TomlTable& t, std::initializer_list<const char*> keys, const std::string& other,
             const std::string& value) {
  for (const char* key : keys)
    t.unused(key, concat("it has no use with ", other, " = ", value, "; leave it out"),
             t.overridden(other));
}

// The first `fraction` of a head's columns, which are whole pairs.
int64_t turned_columns(const TomlTable& t, int64_t K) {
  const double fraction = t.number("rotary_fraction", {.least = 0, .most = 1, .above = true}, 1);
  const double columns = fraction * static_cast<double>(K);
  const auto width = static_cast<int64_t>(std::llround(columns));
  if (std::abs(columns - static_cast<double>(width)) > 1e-6 || width < 2 || width % 2 != 0)
    t.refuse("rotary_fraction", fraction, " of a head_dim of ", K, " is ", columns,
             " columns; rotary positions turn pairs, so it must be an even number of 2 or more");
  return width;
}

// YaRN and Llama 3 leave alone the pairs that turn `rotary_fast` times or more in the text that the
// model was first trained on, and slow those that turn `rotary_slow` times or less.
void read_ramp(const TomlTable& t, const std::string& kind, const Spec& spec,
               kernels::Rotary::Options& o) {
  const auto context = static_cast<double>(t.integer("rotary_context", {1, 1 << 30}, spec.context));
  const bool yarn = kind == "yarn";
  const double slow = t.number("rotary_slow", kFactor, 1),
               fast = t.number("rotary_fast", kFactor, yarn ? 32 : 4);
  if (slow >= fast)
    t.refuse("rotary_slow", "rotary_slow is ", slow, ", expected less than rotary_fast, which is ",
             fast);
  const double turn = 2 * std::numbers::pi;
  if (!yarn) {  // the rates at which a pair turns so often
    o.ramp_begin = turn * fast / context;
    o.ramp_end = turn * slow / context;
    o.ramp_by_rate = true;
    return;
  }
  const auto pair = [&](double turns) {  // the pair that turns so often
    return static_cast<double>(o.width) * std::log(context / (turns * turn)) /
           (2 * std::log(o.base));
  };
  const bool whole = t.boolean("rotary_truncate", true);
  const double last = static_cast<double>(o.width - 1), first = pair(fast), end = pair(slow);
  o.ramp_begin = std::max(whole ? std::floor(first) : first, 0.0);
  o.ramp_end = std::min(whole ? std::ceil(end) : end, last);
  if (o.ramp_begin == o.ramp_end) o.ramp_end += 0.001;
  const double magnitude = t.number("rotary_magnitude", {0, 1e3}, 0);
  o.magnitude = magnitude > 0 ? magnitude : 0.1 * std::log(o.factor) + 1;
}

}  // namespace

kernels::Rotary::Options rotary_positions(const TomlTable& t, const Spec& spec, bool rotary,
                                          int64_t K) {
  kernels::Rotary::Options o;
  if (!rotary) {
    without(
        t,
        {"rotary_base", "rotary_fraction", "rotary_interleaved", "rotary_scaling", "rotary_factor",
         "rotary_context", "rotary_slow", "rotary_fast", "rotary_truncate", "rotary_magnitude"},
        "rotary", "false");
    return o;
  }
  o.base = t.number("rotary_base", kRotaryBase, 10000);
  o.width = turned_columns(t, K);
  o.interleaved = t.boolean("rotary_interleaved", false);
  const std::string kind = t.one_of("rotary_scaling", {"none", "linear", "llama3", "yarn"}, "none");
  if (kind == "none")
    without(t, {"rotary_factor"}, "rotary_scaling", "none");
  else
    o.factor = t.number("rotary_factor", {1, 1e6});
  if (kind == "llama3" || kind == "yarn")
    read_ramp(t, kind, spec, o);
  else
    without(t, {"rotary_context", "rotary_slow", "rotary_fast"}, "rotary_scaling", kind);
  if (kind != "yarn") without(t, {"rotary_truncate", "rotary_magnitude"}, "rotary_scaling", kind);
  if (kind == "yarn" && o.base <= 1)
    t.refuse("rotary_base", "rotary_base is 1, and all pairs turn alike; YaRN needs a larger one");
  return o;
}

HeadProjections::HeadProjections(const Spec& spec, const TomlTable& t, const Builder& b)
    : H_(t.integer("heads", kSize, 4)),
      Hk_(t.integer("key_heads", kSize, H_)),
      rotary_(t.boolean("rotary", true)),
      K_(head_width(spec, t, H_, Hk_, rotary_)),
      scale_(t.number("scale", {0, 1e6}, 0)),
      rotation_(rotary_positions(t, spec, rotary_, K_)),
      output_gate_(t.boolean("output_gate", false)),
      q_(b.within("q_proj"), spec.width, (output_gate_ ? 2 : 1) * H_ * K_, spec.init, biased(t)),
      k_(b.within("k_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
      v_(b.within("v_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
      o_(b.within("o_proj"), H_ * K_, spec.width, spec.residual_init(), biased(t)) {
  if (!t.boolean("qk_norm", false)) {
    without(t, {"qk_norm_whole"}, "qk_norm", "false");
    return;
  }
  whole_norm_ = t.boolean("qk_norm_whole", false);
  const auto make = [&](std::optional<Norm>& norm, const char* name, int64_t heads) {
    norm.emplace(b.within(name), whole_norm_ ? heads * K_ : K_, Norm::Kind::rms, spec.norm_eps,
                 spec.norm_plus_one);
  };
  make(q_norm_, "q_norm", H_);
  make(k_norm_, "k_norm", Hk_);
}

Var HeadProjections::normed(const std::optional<Norm>& norm, const Var& x) const {
  if (!norm) return x;
  return whole_norm_ ? heads((*norm)(merged(x)), x.size(2)) : (*norm)(x);
}

HeadProjections::Result HeadProjections::of(const Var& x, const Context& c) const {
  Var q = heads(q_(x), H_), k = heads(k_(x), Hk_), v = heads(v_(x), Hk_), gate;
  if (output_gate_) {
    const auto both = autograd::split(q, 3, {K_, K_});
    q = both[0];
    gate = both[1];
  }
  return placed({q, k, v, gate}, c);
}

HeadProjections::Result HeadProjections::placed(Result raw, const Context& c) const {
  raw.q = normed(q_norm_, raw.q);
  raw.k = normed(k_norm_, raw.k);
  if (!rotary_) return raw;
  raw.q = rotated(raw.q, rotation_, c);
  raw.k = rotated(raw.k, rotation_, c);
  return raw;
}

HeadProjections::Result HeadProjections::behind_past(Result own, Context& c, int64_t window) const {
  if (c.state) {
    const KeysAndValues all = appended(c, own.k.value(), own.v.value(), window);
    own.k = all.k;
    own.v = all.v;
  }
  return own;
}

namespace {

// Room for `slots` rows where `cache` has fewer; the first `held` rows are kept.
void reserve(Tensor& cache, const Tensor& like, int64_t slots, int64_t held) {
  if (cache && cache.size(1) >= slots) return;
  Shape shape = like.shape();
  shape[1] = slots;
  const Tensor larger = empty(shape, like.dtype(), like.device());
  if (cache && held > 0) larger.slice(1, 0, held).copy_from(cache.slice(1, 0, held));
  cache = larger;
}

// The last `keep` of `held` rows become the first.
void move_down(const Tensor& cache, int64_t held, int64_t keep) {
  if (keep == 0 || keep == held) return;
  const Tensor tail = cache.slice(1, held - keep, held);
  const bool apart = keep <= held - keep;
  cache.slice(1, 0, keep).copy_from(apart ? tail : tail.clone());
}

Tensor joined_rows(const Tensor& a, const Tensor& b) {
  Shape shape = b.shape();
  shape[1] += a.size(1);
  const Tensor both = empty(shape, b.dtype(), b.device());
  if (a.size(1) > 0) both.slice(1, 0, a.size(1)).copy_from(a);
  both.slice(1, a.size(1), shape[1]).copy_from(b);
  return both;
}

// A ring of `slots` rows with the last of those held, of which the newest stands before `position`.
Tensor ring_of(const Tensor& cache, const Tensor& like, int64_t held, int64_t position,
               int64_t slots) {
  Shape shape = like.shape();
  shape[1] = slots;
  const Tensor ring = zeros(shape, like.dtype(), like.device());
  for (int64_t left = std::min(held, slots); left > 0;) {
    const int64_t at = (position - left) % slots, n = std::min(left, slots - at);
    ring.slice(1, at, at + n).copy_from(cache.slice(1, held - left, held - left + n));
    left -= n;
  }
  return ring;
}

void put_in_ring(Context& c, std::vector<CachedRows>& list, int64_t window) {
  State& s = *c.state;
  for (CachedRows& x : list) {
    Tensor& cache = s.tensors[x.name];
    if (!s.ring) {
      const int64_t slots = window > 0 ? std::min(window, c.capacity) : c.capacity;
      cache = ring_of(cache, x.rows, s.held, c.position, slots);
    }
    kernels::put_row(cache, x.rows, c.place);
    x.rows = cache;
  }
  s.ring = true;
}

// More at once than the caches of a window hold: they get its end, and the list gets all.
void append_past(State& s, std::vector<CachedRows>& list, int64_t keep, int64_t window) {
  const int64_t last = window - 1;
  for (CachedRows& x : list) {
    Tensor& cache = s.tensors[x.name];
    x.rows = joined_rows(cache.slice(1, s.held - keep, s.held), x.rows);
  }
  for (CachedRows& x : list) {
    const int64_t S = x.rows.size(1);
    if (last > 0) s.tensors[x.name].slice(1, 0, last).copy_from(x.rows.slice(1, S - last, S));
  }
  s.held = last;
}

}  // namespace

void append(Context& c, std::vector<CachedRows>& list, int64_t window) {
  if (c.place) return put_in_ring(c, list, window);
  State& s = *c.state;
  const Tensor first = s.tensors[list[0].name];
  const int64_t n = list[0].rows.size(1);
  // Room for the text that will come, as far as that is known; a window needs no more than twice
  // its own rows, so that what it drops is moved seldom.
  const auto make_room = [&](int64_t most) {
    const int64_t rows = std::max({c.capacity, s.held + n, first ? 2 * first.size(1) : 0});
    for (const CachedRows& x : list)
      reserve(s.tensors[x.name], x.rows, std::min(rows, most), s.held);
  };
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (window > 0 && window < kAll / 2) {
    const int64_t slots = 2 * window, keep = std::min(s.held, window - 1);
    if (!first || std::min(s.held + n, slots) > first.size(1)) make_room(slots);
    if (keep + n > slots) return append_past(s, list, keep, window);
    if (s.held + n > slots) {
      for (const CachedRows& x : list) move_down(s.tensors[x.name], s.held, keep);
      s.held = keep;
    }
  } else if (!first || s.held + n > first.size(1)) {
    make_room(kAll);
  }
  for (CachedRows& x : list) {
    Tensor& cache = s.tensors[x.name];
    cache.slice(1, s.held, s.held + n).copy_from(x.rows);
    x.rows = cache.slice(1, 0, s.held + n);
  }
  s.held += n;
}

KeysAndValues appended(Context& c, const Tensor& k, const Tensor& v, int64_t window) {
  std::vector<CachedRows> both{{"k", k}, {"v", v}};
  append(c, both, window);
  return {both[0].rows, both[1].rows};
}

}  // namespace weft::layers
