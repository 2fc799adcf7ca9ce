// Rotary positions: pair i of a head turns by the angle p rate_i at position p.
//   (a, b) -> magnitude (a cos - b sin, a sin + b cos)
//   rate_i = r_i (1 - m_i + m_i / factor),   r_i = base^(-2i / width)
// m_i is 1 for every pair where ramp_begin = ramp_end. Else it rises from 0 to 1 while s goes from
// ramp_begin to ramp_end, and s is the pair's number i, or its r_i if ramp_by_rate.
// Pair i is columns (i, i + width / 2), or (2i, 2i + 1) if interleaved; columns past `width` stay.
// Positions start from `offset`, again in each packed document. Backward turns by the negative
// angle. Sources: arXiv:2104.09864, 2306.15595 (factor), 2309.00071 (ramp and magnitude).
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Rotary {
  static constexpr std::string_view name = "rotary";

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
  static constexpr Field kOutputs[] = {{"y", "[B, T, H, K]"}};

  struct Options {
    double base = 10000;
    int64_t width = 0;  // 0: K
    bool interleaved = false;
    int64_t offset = 0;
    Tensor cu_seqlens;  // i32 [N + 1] on the CPU, or absent
    Tensor position;    // i32 [1] on the device of x, or absent: counts on top of offset
    double factor = 1, ramp_begin = 0, ramp_end = 0;
    bool ramp_by_rate = false;
    double magnitude = 1;
    template <class F>
    void each(F&& f) {
      f("base", base, "the slowest pair turns by position / base, nearly");
      f("width", width, "columns of a head that turn; 0: all");
      f("interleaved", interleaved, "pairs are neighbours, not halves of the width");
      f("offset", offset, "position of the first token");
      f("cu_seqlens", cu_seqlens, "[N + 1]");
      f("position", position, "[1], on top of offset");
      f("factor", factor, "how many times slower the slow pairs turn");
      f("ramp_begin", ramp_begin, "pairs up to here turn as fast as ever");
      f("ramp_end", ramp_end, "pairs from here on are slow; equal to ramp_begin: all are");
      f("ramp_by_rate", ramp_by_rate, "the ramp is over r_i, not over i");
      f("magnitude", magnitude, "factor of the columns that turn");
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
