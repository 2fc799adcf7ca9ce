// The mean of each complete block of tokens: y[b, slot] = sum of x over the block / block, with
// slots as in grid.h; 0 in an empty slot. A block that is not complete yet has no mean, so a mean
// once there never changes as the text goes on.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct BlockMeans {
  static constexpr std::string_view name = "block_means";

  template <class X>
  struct Inputs {
    X x;
    auto fields() { return std::tie(x); }
  };
  static constexpr Field kInputs[] = {{"x", "[B, T, H, K]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[B, slots, H, K]"}};

  struct Options {
    int64_t block = 64;
    Tensor cu_seqlens;
    // i32 [1] on the device of x: x is a cache in which tokens 0 .. position count. No gradient.
    Tensor position;
    // No form reads this tensor. It keeps its memory until the gradient is made, so that a CPU's
    // plan counts what the run counts.
    Tensor held;

    template <class F>
    void each(F&& f) {
      f("block", block, "tokens in a block");
      f("cu_seqlens", cu_seqlens, "[N + 1] i32, where packed documents begin and end; needs B = 1");
      f("position", position, "[1] i32, behind which no token counts");
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
