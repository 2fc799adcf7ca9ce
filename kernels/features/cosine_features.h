// Features of cosFormer: relu(x) weighed by the position. With theta = frequency_h p at position p
//   y = [relu(x) cos theta, relu(x) sin theta]
// so that y(q).y(k) = relu(q).relu(k) cos(frequency (p_q - p_k)), which is positive as long as the
// positions lie less than pi / (2 frequency) apart. Positions start from `offset`, again in each
// packed document. Source: arXiv:2202.08791.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct CosineFeatures {
  static constexpr std::string_view name = "cosine_features";

  template <class X>
  struct Inputs {
    X x, frequency;
    auto fields() { return std::tie(x, frequency); }
  };
  static constexpr Field kInputs[] = {{"x", "[B, T, H, K]"},
                                      {"frequency", "[H]", /*optional=*/false, /*wide=*/true}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[B, T, H, 2 K]"}};

  struct Options {
    int64_t offset = 0;
    Tensor cu_seqlens;  // i32 [N + 1] on the CPU, or absent
    Tensor position;    // i32 [1] on the device of x, or absent: counts on top of offset
    template <class F>
    void each(F&& f) {
      f("offset", offset, "position of the first token");
      f("cu_seqlens", cu_seqlens, "[N + 1]");
      f("position", position, "[1], on top of offset");
    }
  };
  struct Saved {};

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
