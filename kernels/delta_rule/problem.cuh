// The host's side of the rules that overwrite (delta and kda): what a call brings, the memory that
// its kernels share, and their order. A rule says what it makes of chunks before any state is
// known, and of tokens once all states are:
//   struct P : Problem<T, M, kVector> { template <int KP> void prepare_chunks() const; }
#pragma once

#include "kernels/contract/mechanism.h"
#include "kernels/delta_rule/decode.cuh"
#include "kernels/delta_rule/gradients.cuh"
#include "kernels/delta_rule/hopper.cuh"
#include "kernels/delta_rule/inverse.cuh"

namespace weft::kernels::delta_rule {

template <class Real, class M, bool kGateAChannel>
struct Problem {
  using Number = Real;
  static constexpr bool kVector = kGateAChannel;

  Problem(const Inputs<M>& x, const Options<M>& o)
      : q(aligned(x.q)),
        k(aligned(x.k)),
        v(aligned(x.v)),
        g(kVector ? aligned(x.g) : x.g),
        initial(x.initial_state ? x.initial_state.contiguous() : x.initial_state) {
    const int64_t B = v.size(0), L = v.size(1), H = v.size(2);
    const Device device = v.device();
    grid = make_grid(o.cu_seqlens, v, cu);
    K = static_cast<int>(k.size(3)), V = static_cast<int>(v.size(3));
    group = static_cast<int>(H / k.size(2));
    scale = static_cast<float>(o.factor(K));
    inverse = empty({B, H, L, kInverseWidth<Real>}, v.dtype(), device);
    scores = empty({B, H, L, kChunk}, v.dtype(), device);
    gates = empty({B, H, L, 4}, Dtype::f32, device);
    scan.grid = grid;
    scan.K = K, scan.V = V, scan.group = group, scan.scale = scale;
    scan.state_pitch = pitch<Real>(K), scan.row_pitch = pitch<Real>(V);
    scan.q = heads<const Real>(q), scan.k = heads<const Real>(k), scan.v = heads<const Real>(v);
    scan.inverse = dptr<Real>(inverse), scan.scores = dptr<Real>(scores);
    scan.gates = reinterpret_cast<const Gate*>(dptr<float>(gates));
    scan.initial_state = initial ? dptr<float>(initial) : nullptr;
  }
  // Memory for the states before (or the gradients after) all chunks of a row but one; for rows of
  // V.
  Tensor states() const {
    if (grid.chunks == 1) return {};
    return empty({grid.B, grid.chunks - 1, grid.H, V, scan.state_pitch}, v.dtype(), v.device());
  }
  Tensor rows() const {
    return empty({grid.B, grid.T, grid.H, scan.row_pitch}, v.dtype(), v.device());
  }
  int64_t chunk_heads() const { return int64_t{grid.B} * grid.chunks * grid.H; }

  Tensor q, k, v, g, initial, cu, inverse, scores, gates;
  Grid grid;
  int K, V, group;
  float scale;
  Scan<Real> scan{};
};

// Chunks by themselves, then a scan that carries the state.
template <class P, class M>
void forward_form(const Inputs<M>& in, const Options<M>& o, Outputs<M>& y,
                  typename M::Saved* saved) {
  using T = typename P::Number;
  if (in.v.size(1) == 1 && !saved) return decode_form<P, M>(in, o, y);
  P p(in, o);
  if (saved) {
    saved->states = p.states();
    saved->written = p.rows();
  }
  if (in.v.is_meta()) return;
  p.scan.o = dptr<T>(y.o);
  p.scan.final_state = y.final_state ? dptr<float>(y.final_state) : nullptr;
  if (saved) {
    p.scan.states = saved->states ? dptr<T>(saved->states) : nullptr;
    p.scan.written = dptr<T>(saved->written);
  }
  for_key_width<T>(in.k.size(3), [&]<int KP>() {
    p.template prepare_chunks<KP>();
    run_scan<T, KP, P::kVector, false>(p.scan);
  });
}

// A scan from the last piece to the first, which makes dv and the state's gradients, then
// token_gradients(p, Gradients) for all the rest. R is [B, T, H, V] beside `written`.
template <class P, class M, class F>
void backward_form(const Inputs<M>& in, const Options<M>& o, const typename M::Saved& saved,
                   const Outputs<M>& dy, Inputs<M>& dx, F&& token_gradients) {
  using T = typename P::Number;
  const int64_t B = in.v.size(0), L = in.v.size(1), H = in.v.size(2), K = in.k.size(3);
  const Device device = in.v.device();
  P p(in, o);
  const Tensor dout = aligned(dy.o);
  const Tensor dfinal = dy.final_state ? dy.final_state.contiguous() : dy.final_state;
  const Tensor erased = p.rows(), dstates = p.states();
  const bool shared = p.group > 1;
  Tensor dq_part, dk_part;
  if (shared && dx.q) dq_part = empty({B, L, H, K}, Dtype::f32, device);
  if (shared && dx.k) dk_part = empty({B, L, H, K}, Dtype::f32, device);
  if (in.v.is_meta()) return;
  const auto wide = [](const Tensor& t) { return t ? dptr<float>(t) : nullptr; };
  const auto narrow = [](const Tensor& t) { return t ? dptr<T>(t) : nullptr; };
  p.scan.dout = heads<const T>(dout);
  p.scan.erased = dptr<T>(erased);
  p.scan.dv = narrow(dx.v);
  p.scan.dstates = narrow(dstates);
  p.scan.dfinal_state = wide(dfinal);
  p.scan.dinitial_state = wide(dx.initial_state);
  for_key_width<T>(K, [&]<int KP>() {
    p.template prepare_chunks<KP>();
    run_scan<T, KP, P::kVector, true>(p.scan);
  });

  if (!dx.q && !dx.k && !dx.beta && !dx.g) return;
  token_gradients(p, Gradients<T>{p.grid,
                                  p.K,
                                  p.V,
                                  p.group,
                                  p.scan.state_pitch,
                                  p.scan.row_pitch,
                                  p.scale,
                                  heads<const T>(p.q),
                                  heads<const T>(p.k),
                                  p.scan.v,
                                  p.scan.dout,
                                  dptr<T>(saved.written),
                                  dptr<T>(erased),
                                  narrow(saved.states),
                                  narrow(dstates),
                                  p.scan.initial_state,
                                  p.scan.dfinal_state,
                                  p.scan.gates,
                                  shared ? nullptr : narrow(dx.q),
                                  shared ? nullptr : narrow(dx.k),
                                  wide(dq_part),
                                  wide(dk_part),
                                  wide(dx.beta),
                                  wide(dx.g)});
  const auto sum = [&](const Tensor& part, const Tensor& d) {
    if (!part) return;
    launch(sum_groups<T>, ceil_div(d.numel(), 256), 256, 0, dptr<float>(part), dptr<T>(d),
           d.numel(), p.group, p.K);
  };
  sum(dq_part, dx.q);
  sum(dk_part, dx.k);
}

}  // namespace weft::kernels::delta_rule
