// Softmax attention: full or in a sliding window, with soft cap and sinks (a logit per head that
// takes probability and gives nothing, named as in gpt-oss).
// Sources: arXiv:1706.03762, 2004.05150 (window), 2408.00118 (soft cap), 2309.17453 (sinks).
#include "kernels/attention/attention.h"

#include <algorithm>
#include <limits>

#include "autograd/kernel_op.h"
#include "layers/softmax.h"

namespace weft::layers {
namespace {

// No text is longer than 2^31 tokens, so that a longer window is that one.
int64_t window_of(const TomlTable& t) {
  return std::min<int64_t>(std::numeric_limits<int32_t>::max(),
                           t.integer("window", {0, std::numeric_limits<int64_t>::max()}, 0));
}

class Attention final : public Layer {
 public:
  Attention(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b), window_(window_of(t)), softcap_(t.number("softcap", kCap, 0)) {
    if (t.boolean("sinks", false))
      sinks_ = b.wide().parameter("sinks", {heads_.H()}, Init::normal(spec.init));
  }

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v, gate] = heads_(x, c, window_);
    kernels::Attention::Options o;
    o.scale = heads_.scale();
    o.window = c.place ? 0 : window_;  // a ring of keys holds no more than the window
    o.position = c.place;
    o.softcap = softcap_;
    o.cu_seqlens = c.cu_seqlens;
    return heads_.out(autograd::apply<kernels::Attention>({q, k, v, sinks_}, o).o, gate);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const double n = static_cast<double>(T), W = static_cast<double>(window_);
    // Mean keys of a token: (1 + ... + T) / T, of which none sees more than W.
    const double keys = window_ == 0 || W >= n ? (n + 1) / 2 : W - W * (W - 1) / (2 * n);
    const double K = static_cast<double>(heads_.K());
    return static_cast<double>(heads_.H()) * kernels::softmax_flops(keys, K, K).forward;
  }

 private:
  HeadProjections heads_;
  int64_t window_;
  double softcap_;
  Var sinks_;
};

const RegisteredMixer registered{"attention", maker<Attention>()};

}  // namespace
}  // namespace weft::layers
