// One token of the rules that overwrite (delta and kda) on a GPU, without a gradient.
#pragma once

#include "kernels/contract/mechanism.h"
#include "kernels/delta_rule/delta_rule.cuh"

namespace weft::kernels::delta_rule {

template <class Real>
struct Decode {
  int B, H, K, V, group;
  float scale;
  Heads<const Real> q, k, v;
  Heads<const float> beta, g;  // g of a channel where kVector; may be null where not
  const float* initial_state;  // [B, H, K, V] or null
  float* final_state;          // or null
  Real* o;                     // [B, 1, H, V]
};

// A step of one token: the state is read once, stays in registers, and is written once. A block has
// 32 columns of V of one head, a lane each; its 8 warps share the rows.
inline constexpr int kDecodeWarps = 8, kDecodeRows = 256 / kDecodeWarps;
template <class Real, bool kVector>
__global__ void __launch_bounds__(32 * kDecodeWarps)
    decode(const __grid_constant__ Decode<Real> a) {
  __shared__ float parts[3][kDecodeWarps][32];
  const int slices = (a.V + 31) / 32, warp = warp_index(), lane = lane_index();
  const int c = static_cast<int>(blockIdx.x) % slices * 32 + lane;
  const int h = static_cast<int>(blockIdx.x) / slices % a.H;
  const int b = static_cast<int>(blockIdx.x) / slices / a.H;
  const int64_t state = (int64_t{b} * a.H + h) * a.K * a.V + c;
  const Real *const q = a.q.at(b, 0, h / a.group), *const k = a.k.at(b, 0, h / a.group);
  const float* const g = a.g.data ? a.g.at(b, 0, h) : nullptr;

  float S[kDecodeRows], key = 0, query = 0, match = 0;
#pragma unroll
  for (int i = 0; i < kDecodeRows; ++i) {
    const int d = i * kDecodeWarps + warp;
    S[i] = 0;
    if (d >= a.K) continue;
    const float kd = to_float(k[d]), qd = to_float(q[d]);
    match += qd * kd;
    if (!a.initial_state || c >= a.V) continue;
    const float decay = g ? ex2(kLog2e * g[kVector ? d : 0]) : 1.f;
    S[i] = decay * a.initial_state[state + int64_t{d} * a.V];
    key += kd * S[i];
    query += qd * S[i];
  }
  parts[0][warp][lane] = key;
  parts[1][warp][lane] = query;
  parts[2][warp][lane] = match;
  __syncthreads();
  key = query = match = 0;
#pragma unroll
  for (int i = 0; i < kDecodeWarps; ++i) {
    key += parts[0][i][lane];
    query += parts[1][i][lane];
    match += parts[2][i][lane];
  }
  if (c >= a.V) return;
  const float u = *a.beta.at(b, 0, h) * (to_float(a.v.at(b, 0, h)[c]) - key);
  if (warp == 0) {
    a.o[(int64_t{b} * a.H + h) * a.V + c] = from_float<Real>(a.scale * (query + match * u));
  }
  if (!a.final_state) return;
#pragma unroll
  for (int i = 0; i < kDecodeRows; ++i) {
    const int d = i * kDecodeWarps + warp;
    if (d < a.K) a.final_state[state + int64_t{d} * a.V] = S[i] + to_float(k[d]) * u;
  }
}

// --- Host ----------------------------------------------------------------------------------------

// A row of one token without a gradient.
template <class P, class M>
void decode_form(const Inputs<M>& in, const Options<M>& o, Outputs<M>& y) {
  using T = typename P::Number;
  const int64_t B = in.v.size(0), H = in.v.size(2), K = in.k.size(3), V = in.v.size(3);
  const Tensor q = aligned(in.q), k = aligned(in.k), v = aligned(in.v);
  const Tensor g = P::kVector ? aligned(in.g) : in.g;
  const Tensor initial = in.initial_state ? in.initial_state.contiguous() : in.initial_state;
  if (v.is_meta()) return;
  const Decode<T> step{static_cast<int>(B),
                       static_cast<int>(H),
                       static_cast<int>(K),
                       static_cast<int>(V),
                       static_cast<int>(H / k.size(2)),
                       static_cast<float>(o.factor(K)),
                       heads<const T>(q),
                       heads<const T>(k),
                       heads<const T>(v),
                       heads<const float>(in.beta),
                       heads<const float>(g),
                       initial ? dptr<float>(initial) : nullptr,
                       y.final_state ? dptr<float>(y.final_state) : nullptr,
                       dptr<T>(y.o)};
  launch(decode<T, P::kVector>, B * H * ceil_div(V, 32), 32 * kDecodeWarps, 0, step);
}

}  // namespace weft::kernels::delta_rule
