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
  if (!t.has("head_dim") && spec.width % H != 0)
    t.refuse("heads", H, " heads do not divide the width of ", spec.width,
             " evenly; set head_dim too, or other heads");
  const int64_t K = t.integer("head_dim", kSize, spec.width / H);
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

kernels::Rotary::Options rotation_of(const TomlTable& t, const Spec& spec, bool rotary, int64_t K) {
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

}  // namespace

HeadProjections::HeadProjections(const Spec& spec, const TomlTable& t, const Builder& b)
    : H_(t.integer("heads", kSize, 4)),
      Hk_(t.integer("key_heads", kSize, H_)),
      rotary_(t.boolean("rotary", true)),
      K_(head_width(spec, t, H_, Hk_, rotary_)),
      scale_(t.number("scale", {0, 1e6}, 0)),
      rotation_(rotation_of(t, spec, rotary_, K_)),
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
  q = normed(q_norm_, q);
  k = normed(k_norm_, k);
  if (rotary_) {
    q = rotated(q, rotation_, c);
    k = rotated(k, rotation_, c);
  }
  return {q, k, v, gate};
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

KeysAndValues put_in_ring(Context& c, const Tensor& k, const Tensor& v, int64_t window) {
  State& s = *c.state;
  Tensor &keys = s.tensors["k"], &values = s.tensors["v"];
  if (!s.ring) {
    const int64_t slots = window > 0 ? std::min(window, c.capacity) : c.capacity;
    keys = ring_of(keys, k, s.held, c.position, slots);
    values = ring_of(values, v, s.held, c.position, slots);
    s.ring = true;
  }
  kernels::put_row(keys, k, c.place);
  kernels::put_row(values, v, c.place);
  return {keys, values};
}

}  // namespace

KeysAndValues appended(Context& c, const Tensor& k, const Tensor& v, int64_t window) {
  if (c.place) return put_in_ring(c, k, v, window);
  State& s = *c.state;
  Tensor &keys = s.tensors["k"], &values = s.tensors["v"];
  const int64_t n = k.size(1);
  // Room for the text that will come, as far as that is known; a window needs no more than twice
  // its own rows, so that what it drops is moved seldom.
  const auto make_room = [&](int64_t most) {
    const int64_t rows = std::max({c.capacity, s.held + n, keys ? 2 * keys.size(1) : 0});
    reserve(keys, k, std::min(rows, most), s.held);
    reserve(values, v, std::min(rows, most), s.held);
  };
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (window > 0 && window < kAll / 2) {
    const int64_t slots = 2 * window, keep = std::min(s.held, window - 1);
    if (!keys || std::min(s.held + n, slots) > keys.size(1)) make_room(slots);
    if (keep + n > slots) {  // more at once than the cache holds: it gets their end
      const KeysAndValues all{joined_rows(keys.slice(1, s.held - keep, s.held), k),
                              joined_rows(values.slice(1, s.held - keep, s.held), v)};
      const int64_t S = keep + n, last = window - 1;
      if (last > 0) {
        keys.slice(1, 0, last).copy_from(all.k.slice(1, S - last, S));
        values.slice(1, 0, last).copy_from(all.v.slice(1, S - last, S));
      }
      s.held = last;
      return all;
    }
    if (s.held + n > slots) {
      move_down(keys, s.held, keep);
      move_down(values, s.held, keep);
      s.held = keep;
    }
  } else if (!keys || s.held + n > keys.size(1)) {
    make_room(kAll);
  }
  keys.slice(1, s.held, s.held + n).copy_from(k);
  values.slice(1, s.held, s.held + n).copy_from(v);
  s.held += n;
  return {keys.slice(1, 0, s.held), values.slice(1, 0, s.held)};
}

}  // namespace weft::layers
