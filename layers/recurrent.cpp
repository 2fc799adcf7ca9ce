#include "layers/recurrent.h"

namespace weft::layers {

HeadSizes head_sizes(const Spec& spec, const TomlTable& t, double expand_k, double expand_v,
                     bool shared) {
  HeadSizes s;
  s.H = t.integer("heads", kSize, 4);
  s.Hk = shared ? t.integer("key_heads", kSize, s.H) : s.H;
  if (s.H % s.Hk != 0)
    t.refuse("key_heads", s.H, " heads cannot share ", s.Hk, " key heads evenly");
  const auto width = [&](const char* key, double expand) {
    const double all = expand * static_cast<double>(spec.heads_width());
    return t.integer(key, kSize,
                     std::max<int64_t>(1, std::llround(all / static_cast<double>(s.H))));
  };
  s.K = width("key_width", expand_k);
  s.V = width("value_width", expand_v);
  return s;
}

MixedQkv::MixedQkv(const Builder& b, const Spec& spec, const HeadSizes& size, int64_t taps)
    : size_(size),
      q_(b.within("q_proj"), spec.width, size.Hk * size.K, spec.init),
      k_(b.within("k_proj"), spec.width, size.Hk * size.K, spec.init),
      v_(b.within("v_proj"), spec.width, size.H * size.V, spec.init),
      q_conv_(b, "q_conv1d", size.Hk * size.K, taps),
      k_conv_(b, "k_conv1d", size.Hk * size.K, taps),
      v_conv_(b, "v_conv1d", size.H * size.V, taps) {}

}  // namespace weft::layers
