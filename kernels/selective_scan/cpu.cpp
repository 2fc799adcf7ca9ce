// The form that trains: channels in parallel, a vector of them at a time, each walking the pieces
// of its row with its state in scratch memory. Backward starts each segment from the state kept on
// the grid and makes the states within it anew. What all channels share (dB, dC) is summed over a
// block of channels first and over the blocks, of which the shape sets the number, at the end.
#include "core/parallel.h"
#include "kernels/selective_scan/cuts.h"
#include "kernels/selective_scan/reference.h"
#include "kernels/selective_scan/scan.h"
#include "kernels/selective_scan/selective_scan.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

const Registered<SelectiveScan> registered;

template <class Real>
struct Operands {
  static constexpr int64_t kWidth = kLanes<Real>;
  static constexpr Real kFastest = SelectiveScan::kFastest;

  Operands(const Inputs<SelectiveScan>& in, const SelectiveScan::Options& o)
      : B(in.x.size(0)),
        L(in.x.size(1)),
        E(in.x.size(2)),
        K(in.B.size(2)),
        groups((E + kWidth - 1) / kWidth),
        segment(std::min(L, selective_scan::kSegment)),
        docs(o.cu_seqlens, B, L, segment),
        x(view<const Real>(in.x)),
        dt(view<const Real>(in.dt)),
        A_log(view<const Real>(in.A_log)),
        Bs(view<const Real>(in.B)),
        Cs(view<const Real>(in.C)),
        D(view<const Real>(in.D)),
        z(view<const Real>(in.z)),
        bias(view<const Real>(in.dt_bias)),
        initial(view<const Real>(in.initial_state)) {}

  int64_t B, L, E, K, groups, segment;
  Documents docs;
  View<const Real> x, dt, A_log, Bs, Cs, D, z, bias, initial;

  int64_t scratch_size(bool gradients) const {
    Carver<Real> count;
    (void)selective_scan::Group<Real>(count, segment, K, gradients);
    return count.used();
  }
  // How many of the lanes of group i are channels.
  int64_t used(int64_t i) const { return std::min(kWidth, E - i * kWidth); }

  // The arrays of one thread, with what belongs to the channels of group i. Lanes without a channel
  // run along with an x of zero.
  selective_scan::Group<Real> group(const Tensor& scratch, int64_t i, bool gradients) const {
    Carver<Real> memory(scratch.data<Real>() + thread_index() * scratch.size(1));
    selective_scan::Group<Real> g(memory, segment, K, gradients);
    const int64_t e = i * kWidth;
    load_columns(A_log, i, g.A);
#pragma omp simd
    for (int64_t j = 0; j < K * kWidth; ++j) g.A[j] = -vexp(g.A[j] > kFastest ? kFastest : g.A[j]);
    load(D ? D.at(e) : nullptr, D.stride(0), i, g.D);
    load(bias ? bias.at(e) : nullptr, bias.stride(0), i, g.bias);
    return g;
  }
  // The channels of group i from numbers that lie `stride` apart; zeros where there are none.
  void load(const Real* from, int64_t stride, int64_t i, Real* to) const {
    const int64_t n = used(i);
    for (int64_t l = 0; l < kWidth; ++l) to[l] = from && l < n ? from[l * stride] : Real(0);
  }
  // The channels of group i for the tokens of a piece.
  void load_tokens(const View<const Real>& from, int64_t b, const Piece& p, int64_t i,
                   Real* to) const {
    if (!from) return;
    const bool whole = from.stride(2) == 1 && used(i) == kWidth;
    for (int64_t t = 0; t < p.size(); ++t) {
      const Real* const row = from.at(b, p.begin + t, i * kWidth);
      if (whole)
        lanes(to + t * kWidth) = lanes(row);
      else
        load(row, from.stride(2), i, to + t * kWidth);
    }
  }
  void store_tokens(const Real* from, const View<Real>& to, int64_t b, const Piece& p,
                    int64_t i) const {
    if (!to) return;
    for (int64_t t = 0; t < p.size(); ++t) {
      Real* const row = to.at(b, p.begin + t, i * kWidth);
      if (used(i) == kWidth)
        lanes(row) = lanes(from + t * kWidth);
      else
        std::copy_n(from + t * kWidth, used(i), row);
    }
  }
  // [K, lanes] from the channels of a tensor [E, K].
  void load_columns(const View<const Real>& from, int64_t i, Real* to) const {
    if (used(i) < kWidth || !from) std::fill_n(to, K * kWidth, Real(0));
    for (int64_t l = 0; l < used(i) && from; ++l) {
      const Real* const row = from.at(i * kWidth + l, 0);
      for (int64_t k = 0; k < K; ++k) to[k * kWidth + l] = row[k * from.stride(1)];
    }
  }
  // The state of document n in a tensor [N, E, K].
  void load_state(const View<const Real>& from, int64_t n, int64_t i, Real* to) const {
    load_columns(from ? of_document(from, n) : from, i, to);
  }
  void store_state(const Real* from, const View<Real>& to, int64_t n, int64_t i) const {
    for (int64_t l = 0; l < used(i); ++l) {
      Real* const row = to.at(n, i * kWidth + l, 0);
      for (int64_t k = 0; k < K; ++k) row[k] = from[k * kWidth + l];
    }
  }
  static View<const Real> of_document(const View<const Real>& states, int64_t n) {
    View<const Real> v;
    v.data = states.at(n, 0, 0), v.dims = 2;
    v.sizes = {states.size(1), states.size(2)}, v.strides = {states.stride(1), states.stride(2)};
    return v;
  }
  // B or C for the tokens of a piece.
  static MatrixView<const Real> rows(const View<const Real>& of, int64_t b, const Piece& p) {
    return {of.at(b, p.begin, 0), of.stride(1), of.stride(2)};
  }
};

// The groups of channels, cut into blocks by their number alone.
struct Blocks {
  explicit Blocks(int64_t groups, int64_t width)
      : groups(groups),
        size(std::max((groups + selective_scan::kBlocks - 1) / selective_scan::kBlocks,
                      selective_scan::kBlock / width)),
        count((groups + size - 1) / size) {}
  int64_t groups, size, count;
  int64_t begin(int64_t i) const { return i * size; }
  int64_t end(int64_t i) const { return std::min(groups, (i + 1) * size); }
};

}  // namespace

void SelectiveScan::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 3 && x.x.numel() > 0, name, ": x has shape ", x.x.shape(),
          ", expected [B, T, E], none of them 0");
  const int64_t B = x.x.size(0), T = x.x.size(1), E = x.x.size(2);
  require(x.A_log.dims() == 2 && x.A_log.size(0) == E && x.A_log.size(1) > 0, name,
          ": A_log has shape ", x.A_log.shape(), ", expected [", E, ", K] for x ", x.x.shape());
  const int64_t K = x.A_log.size(1);
  check_shape(name, "dt", x.dt, {B, T, E});
  check_shape(name, "B", x.B, {B, T, K});
  check_shape(name, "C", x.C, {B, T, K});
  check_shape(name, "D", x.D, {E});
  check_shape(name, "z", x.z, {B, T, E});
  check_shape(name, "dt_bias", x.dt_bias, {E});
  check_documents(name, o.cu_seqlens, B, T, o.return_state || x.initial_state);
  check_shape(name, "initial_state", x.initial_state, {document_count(o.cu_seqlens, B), E, K});
}

Outputs<SelectiveScan> SelectiveScan::outputs(const Inputs<Tensor>& x, const Options& o) {
  const Shape state{document_count(o.cu_seqlens, x.x.size(0)), x.x.size(2), x.A_log.size(1)};
  Outputs<Tensor> y{.o = empty(x.x.shape(), x.x.dtype(), x.x.device())};
  if (o.return_state) y.final_state = empty(state, x.x.dtype(), x.x.device());
  return y;
}

void SelectiveScan::cpu_forward(const Inputs<Tensor>& in, const Options& options,
                                Outputs<Tensor>& y, Saved* saved) {
  const Dtype dtype = in.x.dtype();
  const Device device = in.x.device();
  for_real(dtype, [&]<class Real>() {
    const Operands<Real> x(in, options);
    const int64_t segments = x.docs.chunks();
    if (saved && segments > 1) saved->states = empty({x.B, segments - 1, x.K, x.E}, dtype, device);
    const Tensor scratch = empty({thread_count(), x.scratch_size(false)}, dtype, device);
    if (device.is_meta()) return;
    const View<Real> o = view<Real>(y.o), final_state = view<Real>(y.final_state);
    const View<Real> states = saved ? view<Real>(saved->states) : View<Real>{};
    // A decode step of a small model is shorter than waking a thread.
    const int64_t grain = std::max<int64_t>(1, selective_scan::kStepGrain / (x.L * x.K));
    parallel_ranges(x.B * x.groups, grain, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; ++task) {
        const int64_t b = task / x.groups, i = task % x.groups;
        selective_scan::Group<Real> group = x.group(scratch, i, false);
        const auto walk = [&](const Piece& p) {
          if (p.first) {
            x.load_state(x.initial, p.document, i, group.h);
          } else if (states) {
            for (int64_t k = 0; k < x.K; ++k)
              std::copy_n(group.h + k * x.kWidth, x.used(i),
                          states.at(b, p.chunk - 1, k, i * x.kWidth));
          }
          x.load_tokens(x.x, b, p, i, group.x);
          x.load_tokens(x.dt, b, p, i, group.raw);
          x.load_tokens(x.z, b, p, i, group.z);
          group.forward(p.size(), x.rows(x.Bs, b, p), x.rows(x.Cs, b, p), static_cast<bool>(x.z));
          x.store_tokens(group.o, o, b, p, i);
          if (p.last && final_state) x.store_state(group.h, final_state, p.document, i);
        };
        for (int64_t s = 0; s < segments; ++s) x.docs.for_pieces(b, s, walk);
      }
    });
  });
}

void SelectiveScan::cpu_backward(const Inputs<Tensor>& in, const Options& options,
                                 const Saved& saved, const Outputs<Tensor>& dy,
                                 Inputs<Tensor>& dx) {
  const Dtype dtype = in.x.dtype();
  const Device device = in.x.device();
  for_real(dtype, [&]<class Real>() {
    const Operands<Real> x(in, options);
    const Blocks blocks(x.groups, x.kWidth);
    const int64_t width = tiled(x.K), padded = x.groups * x.kWidth;
    const Tensor scratch = empty({thread_count(), x.scratch_size(true)}, dtype, device);
    // Of each block: dB, dC. Of each row: dA, dD, ddt_bias.
    const Tensor shared = empty({blocks.count, x.B, x.L, 2 * width}, dtype, device);
    const Tensor weights = empty({x.B, x.K + 2, padded}, dtype, device);
    if (device.is_meta()) return;
    const View<const Real> dout = view<const Real>(dy.o), dfinal = view<const Real>(dy.final_state);
    const View<Real> dx_x = view<Real>(dx.x), dx_dt = view<Real>(dx.dt), dx_z = view<Real>(dx.z);
    const View<Real> dinitial = view<Real>(dx.initial_state), states = view<Real>(saved.states);
    const View<Real> part = view<Real>(shared), sums = view<Real>(weights);

    parallel_for(x.B * blocks.count, [&](int64_t task) {
      const int64_t b = task / blocks.count, block = task % blocks.count;
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
        selective_scan::Group<Real> group = x.group(scratch, i, true);
        const int64_t lane = i * x.kWidth;
        std::fill_n(group.dA, x.K * x.kWidth, Real(0));
        std::fill_n(group.dD, x.kWidth, Real(0));
        std::fill_n(group.dbias, x.kWidth, Real(0));
        const auto walk = [&](const Piece& p) {
          if (p.last) x.load_state(dfinal, p.document, i, group.dh);
          if (p.first)
            x.load_state(x.initial, p.document, i, group.h);
          else
            for (int64_t k = 0; k < x.K; ++k)
              x.load(states.at(b, p.chunk - 1, k, lane), 1, i, group.h + k * x.kWidth);
          x.load_tokens(x.x, b, p, i, group.x);
          x.load_tokens(x.dt, b, p, i, group.raw);
          x.load_tokens(x.z, b, p, i, group.z);
          x.load_tokens(dout, b, p, i, group.g);
          Real* const dB = part.at(block, b, p.begin, 0);
          group.backward(p.size(), x.rows(x.Bs, b, p), x.rows(x.Cs, b, p), static_cast<bool>(x.z),
                         dB, dB + width, 2 * width, i > blocks.begin(block));
          x.store_tokens(group.x, dx_x, b, p, i);
          x.store_tokens(group.raw, dx_dt, b, p, i);
          x.store_tokens(group.z, dx_z, b, p, i);
          if (p.first && dinitial) x.store_state(group.dh, dinitial, p.document, i);
        };
        for (int64_t s = x.docs.chunks() - 1; s >= 0; --s) x.docs.for_pieces_back(b, s, walk);
        for (int64_t k = 0; k < x.K; ++k)
          for (int64_t l = 0; l < x.kWidth; ++l)  // by A_log: A is its own derivative
            sums(b, k, lane + l) = group.dA[k * x.kWidth + l] * group.A[k * x.kWidth + l];
        std::copy_n(group.dD, x.kWidth, sums.at(b, x.K, lane));
        std::copy_n(group.dbias, x.kWidth, sums.at(b, x.K + 1, lane));
      }
    });

    const View<Real> dB = view<Real>(dx.B), dC = view<Real>(dx.C);
    parallel_ranges(x.B * x.L, selective_scan::kSumRows, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row)
        for (int64_t k = 0; k < x.K; ++k) {
          const int64_t b = row / x.L, t = row % x.L;
          Real sum_B = 0, sum_C = 0;
          for (int64_t block = 0; block < blocks.count; ++block) {
            sum_B += part(block, b, t, k);
            sum_C += part(block, b, t, width + k);
          }
          if (dB) dB(b, t, k) = sum_B;
          if (dC) dC(b, t, k) = sum_C;
        }
    });
    const View<Real> dA = view<Real>(dx.A_log), dD = view<Real>(dx.D),
                     dbias = view<Real>(dx.dt_bias);
    for (int64_t k = 0; k < x.K + 2; ++k)
      for (int64_t e = 0; e < x.E; ++e) {
        Real sum = 0;
        for (int64_t b = 0; b < x.B; ++b) sum += sums(b, k, e);
        if (k < x.K && dA) dA(e, k) = sum;
        if (k == x.K && dD) dD(e) = sum;
        if (k == x.K + 1 && dbias) dbias(e) = sum;
      }
  });
}

}  // namespace weft::kernels
