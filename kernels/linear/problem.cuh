// What linear's kernels share: the tensors and sizes of a call.
#pragma once

#include <cmath>

#include "kernels/linear/linear.h"
#include "kernels/tokens/chunk.cuh"
#include "kernels/tokens/pieces.cuh"

namespace weft::kernels::linear {

inline constexpr int kTokens = 64;  // of a chunk

template <class Real>
struct CudaProblem {
  // cu_seqlens lies on the device. The tensors of x have contiguous rows.
  CudaProblem(const Inputs<Linear>& x, const Options<Linear>& o, const Tensor& cu_seqlens)
      : q(token_rows<const Real>(x.q)),
        k(token_rows<const Real>(x.k)),
        v(token_rows<const Real>(x.v)),
        initial_state(dptr<const float>(x.initial_state)),
        initial_z(dptr<const float>(x.initial_z)),
        B(static_cast<int>(x.q.size(0))),
        H(static_cast<int>(x.v.size(2))),
        group(static_cast<int>(x.v.size(2) / x.q.size(2))),
        K(static_cast<int>(x.q.size(3))),
        V(static_cast<int>(x.v.size(3))),
        scale(static_cast<float>(o.scale != 0 ? o.scale : 1 / std::sqrt(x.q.size(3)))),
        eps(static_cast<float>(o.eps)),
        normalize(o.normalize) {
    documents.cu = dptr<const int32_t>(cu_seqlens);
    documents.T = static_cast<int>(x.q.size(1));
    documents.N = static_cast<int>(document_count(o.cu_seqlens, x.q.size(0)));
    gates.log_gamma = dptr<const float>(x.log_gamma);
    if (!x.g) return;
    gates.g = dptr<const float>(x.g);
    gates.by_row = x.g.stride(0);
    gates.by_token = x.g.stride(1);
    gates.by_head = x.g.stride(2);
  }

  int64_t chunks() const { return ceil_div(documents.T, kTokens); }

  TokenRows<const Real> q, k, v;
  ScalarGates gates;
  const float *initial_state, *initial_z;  // [N, H, K, V], [N, H, K]; absent: zero
  DocumentWalk<kTokens> documents;
  int B, H, group, K, V;
  float scale, eps;
  bool normalize;
};

// state = total * state + added. What a chunk adds is summed by itself, from zero: tensor cores cut
// off what they add to a large sum, always towards zero, and 100,000 tokens would feel it.
template <int N>
__device__ __forceinline__ void carry(tile::Acc<N>& state, float total, const tile::Acc<N>& added) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state.x[j][i] = fmaf(state.x[j][i], total, added.x[j][i]);
  }
}

// The forward pass for Hopper, forward_hopper.cu. False, and nothing done, where it does not cover
// the call: other types than bf16, K above 128, packed documents, `normalize`, rows not aligned for
// TMA.
bool hopper_forward(const Inputs<Linear>& x, const Options<Linear>& o, const Outputs<Linear>& y);

// What the backward pass on Hopper needs beside the gradients, and whether it covers the call:
// bf16, widths up to 128, no packed documents, no `normalize`, no states given or wanted, few
// chunks or enough heads to fill a GPU. It says nothing of the device, so that a plan needs none.
struct ScanScratch {
  ScanScratch(const Inputs<Linear>& x, const Options<Linear>& o, const Outputs<Linear>& dy,
              const Inputs<Linear>& dx);

  bool covers;
  int64_t of_heads = 0;  // numbers: room for dq or dk of each head, where heads share a key
  // If dx.g is wanted: the shares of tokens in the gates' gradients, and those that pass through
  // states (GateShares, scan_hopper.cuh).
  Tensor tokens, through;
};
// False, and nothing done, where it does not cover the call, or the device or the alignment of rows
// are not for it. `states`: room for bf16 [B, chunks - 1, H, K, V] with K and V rounded up to 64s;
// absent with one chunk. `room`: bf16 [of_heads] or more. backward_hopper.cu.
bool hopper_backward(const Inputs<Linear>& x, const Options<Linear>& o, const Tensor& dout,
                     const Inputs<Linear>& dx, const ScanScratch& scratch, const Tensor& states,
                     const Tensor& room);

// The inputs as the kernels take them. Refuses the widths that they do not cover.
inline Inputs<Linear> cuda_inputs(const Inputs<Linear>& x) {
  require(x.q.size(3) <= 256 && x.v.size(3) <= 256, "linear: K = ", x.q.size(3),
          ", V = ", x.v.size(3), "; the CUDA kernels take K and V up to 256");
  Inputs<Linear> y = x;
  for (Tensor* t : {&y.q, &y.k, &y.v}) *t = with_rows(*t);
  for (Tensor* t : {&y.log_gamma, &y.initial_state, &y.initial_z})
    if (*t) *t = t->contiguous();
  return y;
}

}  // namespace weft::kernels::linear
