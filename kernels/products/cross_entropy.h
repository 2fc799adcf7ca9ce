// The head of a language model and its loss in one: logits = x w' + bias (soft-capped if asked),
//   loss = mean over labelled rows of (lse - logit[target]),   z = mean of lse^2,
// lse the log-sum-exp of a row's logits. Logits exist in tiles of 1 MiB, of labelled rows alone;
// backward makes them again. A trainer minimises loss + z_weight * z (arXiv:2204.02311).
// Where no row is labelled, loss, z and all gradients are zero.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct CrossEntropy {
  static constexpr std::string_view name = "cross_entropy";
  static constexpr int32_t kIgnored = -100;  // the target of a row that is not labelled

  template <class X>
  struct Inputs {
    X x, w, bias;
    auto fields() { return std::tie(x, w, bias); }
  };
  static constexpr Field kInputs[] = {
      {"x", "[R, D]"}, {"w", "[V, D]"}, {"bias", "[V]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X loss, z;
    auto fields() { return std::tie(loss, z); }
  };
  static constexpr Field kOutputs[] = {{"loss", "[1]", /*optional=*/false, /*wide=*/true},
                                       {"z", "[1]", /*optional=*/false, /*wide=*/true}};

  struct Options {
    Tensor targets;      // i32 [R], each in 0 .. V - 1, or kIgnored
    double softcap = 0;  // c > 0: logits become c tanh(logit / c)
    template <class F>
    void each(F&& f) {
      f("targets", targets, "[R]");
      f("softcap", softcap, "logits become c tanh(logit / c); 0: as they are");
    }
  };
  struct Saved {
    Tensor lse;  // [R], of labelled rows; on the CPU
    // On a GPU, f32: the gradients of the sum over labelled rows of (lse - logit[target]), and 1 /
    // how many there are.
    Tensor dx, dw, dbias, share;  // [R, D], [V, D], [V] (if there is a bias), [1]
  };

  // The rows of a tile of logits: by shape alone.
  static int64_t chunk_rows(int64_t R, int64_t V);

  // Throws Error that names the first row whose target is outside the vocabulary.
  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

}  // namespace weft::kernels
