// The forward passes of the norms on the GPU: a row's group is read once, into registers. The
// backward passes are in norms_backward.cu.
#include "kernels/rows/norms.cuh"

namespace weft::kernels {
namespace {

template <class Real>
struct Forward {
  const Real *x, *z, *weight, *bias, *residual;  // all but x may be null
  int64_t x_stride, z_stride, residual_stride;
  Real *y, *sum;       // sum where there is a residual
  float *mean, *rstd;  // may be null
  uint32_t segments, groups;
  int W;
  float inverse_count, eps;
  GateKind gate;
};

template <Norm kNorm, class L, class Real>
__global__ void __launch_bounds__(L::kThreads, L::kBlocks)
    norm_forward(const Forward<Real> a, int packs) {
  constexpr int kWidth = L::kWidth;
  const uint32_t s = blockIdx.x * L::kPerBlock + threadIdx.x / L::kLanes;
  const int count = s < a.segments ? packs : 0;
  Segment<Real, L> x(segment_at(a.x, a.x_stride, s, a.groups, a.W), count);
  const Segment<Real, L> z(segment_at(a.z, a.z_stride, s, a.groups, a.W),
                           kNorm == Norm::gated ? count : 0);
  if (kNorm != Norm::gated && a.residual) {
    const Segment<Real, L> residual(segment_at(a.residual, a.residual_stride, s, a.groups, a.W),
                                    count);
    x.add(residual, a.sum + static_cast<int64_t>(s) * a.W, count);
  }

  float mean = 0, sum = 0;
  if constexpr (kNorm == Norm::centred) {
    L::each(count, [&](int j, int column) {
      const auto in = x(j, column);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) mean += to_float(in.at[k]);
    });
    mean = sum_lanes<L::kLanes>(mean) * a.inverse_count;
  }
  L::each(count, [&](int j, int column) {
    const auto in = x(j, column);
    const auto gate = kNorm == Norm::gated && a.gate.first ? z(j, column) : Pack<Real, kWidth>();
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      float n = to_float(in.at[k]) - mean;
      if (kNorm == Norm::gated && a.gate.first) n *= gate_value(a.gate, to_float(gate.at[k]));
      sum += n * n;
    }
  });
  sum = sum_lanes<L::kLanes>(sum);
  const float root = rsqrtf(sum * a.inverse_count + a.eps);
  if (count > 0 && threadIdx.x % L::kLanes == 0) {
    if (a.mean) a.mean[s] = mean;
    if (a.rstd) a.rstd[s] = root;
  }

  const int start = a.groups == 1 ? 0 : static_cast<int>(s % a.groups) * a.W;
  Real* const y = a.y + static_cast<int64_t>(s) * a.W;
  L::each(count, [&](int j, int column) {
    const auto in = x(j, column);
    Pack<Real, kWidth> gate, weight, bias, out;
    if (kNorm == Norm::gated) gate = z(j, column);
    if (a.weight) weight = load<kWidth>(a.weight + start + column);
    if (kNorm == Norm::centred && a.bias) bias = load<kWidth>(a.bias + start + column);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      float v = (to_float(in.at[k]) - mean) * root;
      if (kNorm == Norm::gated) v *= gate_value(a.gate, to_float(gate.at[k]));
      if (a.weight) v *= to_float(weight.at[k]);
      if (kNorm == Norm::centred && a.bias) v += to_float(bias.at[k]);
      out.at[k] = from_float<Real>(v);
    }
    store(y + column, out);
  });
}

struct Given {
  Tensor x, z{}, weight{}, bias{}, residual{};
  int64_t groups = 1;
  bool mean = true;  // divide the sum of squares by W
  double eps;
  GateKind gate{};
};

template <Norm kNorm>
void launch(const Given& in, const Tensor& y, const Tensor& sum, const Tensor& mean,
            const Tensor& rstd) {
  const int64_t R = in.x.size(0), D = in.x.size(1), W = D / in.groups;
  if (R == 0 || D == 0) return;
  for_cuda_dtype(in.x.dtype(), [&]<class Real>() {
    const bool vectors = by_vectors<Real>(in.x, W) && by_vectors<Real>(in.z, W) &&
                         by_vectors<Real>(in.weight, W) && by_vectors<Real>(in.bias, W) &&
                         by_vectors<Real>(in.residual, W);
    const Forward<Real> a{.x = dptr<Real>(in.x),
                          .z = dptr<Real>(in.z),
                          .weight = dptr<Real>(in.weight),
                          .bias = dptr<Real>(in.bias),
                          .residual = dptr<Real>(in.residual),
                          .x_stride = in.x.stride(0),
                          .z_stride = in.z ? in.z.stride(0) : 0,
                          .residual_stride = in.residual ? in.residual.stride(0) : 0,
                          .y = dptr<Real>(y),
                          .sum = dptr<Real>(sum),
                          .mean = dptr<float>(mean),
                          .rstd = dptr<float>(rstd),
                          .segments = static_cast<uint32_t>(R * in.groups),
                          .groups = static_cast<uint32_t>(in.groups),
                          .W = static_cast<int>(W),
                          .inverse_count = in.mean ? 1 / static_cast<float>(W) : 1,
                          .eps = static_cast<float>(in.eps),
                          .gate = in.gate};
    for_lanes<Real>(vectors, W, [&]<class L>(int packs) {
      const auto blocks = static_cast<unsigned>(ceil_div(R * in.groups, L::kPerBlock));
      norm_forward<kNorm, L><<<blocks, L::kThreads, 0, cuda_stream(y.device())>>>(a, packs);
    });
  });
  check_launch("norm forward");
}

Tensor vector_of(const Tensor& t) { return t ? t.contiguous() : t; }
Tensor rows_of(const Tensor& t) { return t ? with_rows(t) : t; }
Tensor statistic(const Tensor& x, int64_t groups) {
  return empty({x.size(0), groups}, Dtype::f32, x.device());
}

}  // namespace

void RmsNorm::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved) {
  const Given in{.x = with_rows(x.x),
                 .weight = vector_of(x.weight),
                 .residual = rows_of(x.residual),
                 .groups = o.groups,
                 .eps = o.eps};
  if (saved) *saved = {statistic(x.x, o.groups), y.sum};
  if (x.x.is_meta()) return;
  launch<Norm::scaled>(in, y.y, y.sum, {}, saved ? saved->rstd : Tensor());
}

void LayerNorm::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved* saved) {
  const Given in{.x = with_rows(x.x),
                 .weight = vector_of(x.weight),
                 .bias = vector_of(x.bias),
                 .residual = rows_of(x.residual),
                 .groups = o.groups,
                 .eps = o.eps};
  if (saved) *saved = {statistic(x.x, o.groups), statistic(x.x, o.groups), y.sum};
  if (x.x.is_meta()) return;
  launch<Norm::centred>(in, y.y, y.sum, saved ? saved->mean : Tensor(),
                        saved ? saved->rstd : Tensor());
}

void GatedNorm::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved* saved) {
  const Given in{.x = with_rows(x.x),
                 .z = with_rows(x.z),
                 .weight = vector_of(x.weight),
                 .groups = o.groups,
                 .eps = o.eps,
                 .gate = {o.gate == "silu", o.gate_first}};
  if (saved) saved->rstd = statistic(x.x, o.groups);
  if (x.x.is_meta()) return;
  launch<Norm::gated>(in, y.y, {}, {}, saved ? saved->rstd : Tensor());
}

void L2Norm::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved) {
  const Given in{.x = with_rows(x.x), .mean = false, .eps = o.eps};
  if (saved) saved->rstd = statistic(x.x, 1);
  if (x.x.is_meta()) return;
  launch<Norm::scaled>(in, y.y, {}, {}, saved ? saved->rstd : Tensor());
}

}  // namespace weft::kernels
