#include "layers/softmax.h"

#include <algorithm>
#include <limits>

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

}  // namespace

HeadProjections::HeadProjections(const Spec& spec, const TomlTable& t, const Builder& b)
    : H_(t.integer("heads", kSize, 4)),
      Hk_(t.integer("key_heads", kSize, H_)),
      rotary_(t.boolean("rotary", true)),
      K_(head_width(spec, t, H_, Hk_, rotary_)),
      base_(t.number("rotary_base", kRotaryBase, 10000)),
      q_(b.within("q_proj"), spec.width, H_ * K_, spec.init, biased(t)),
      k_(b.within("k_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
      v_(b.within("v_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
      o_(b.within("o_proj"), H_ * K_, spec.width, spec.residual_init(), biased(t)) {
  if (!t.boolean("qk_norm", false)) return;
  q_norm_.emplace(b.within("q_norm"), K_);
  k_norm_.emplace(b.within("k_norm"), K_);
}

HeadProjections::Result HeadProjections::operator()(const Var& x, Context& c,
                                                    int64_t window) const {
  Var q = heads(q_(x), H_), k = heads(k_(x), Hk_), v = heads(v_(x), Hk_);
  if (q_norm_) {
    q = (*q_norm_)(q);
    k = (*k_norm_)(k);
  }
  if (rotary_) {
    q = rotated(q, base_, c);
    k = rotated(k, base_, c);
  }
  if (c.state) {
    const KeysAndValues all = appended(c, k.value(), v.value(), window);
    k = all.k;
    v = all.v;
  }
  return {q, k, v};
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
