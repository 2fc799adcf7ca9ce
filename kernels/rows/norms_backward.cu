// The backward passes of the norms on the GPU. RowLanes that share a segment walk down the rows and
// keep the sums for the gradients of weight and bias in registers; the sums of all walks are rows
// of a buffer, which a second kernel adds up in order. Who walks where goes by shape alone.
#include "kernels/rows/column_sums.cuh"
#include "kernels/rows/norms.cuh"

namespace weft::kernels {
namespace {

template <class Real>
struct Backward {
  const Real *x, *z, *weight, *dy;  // z and weight may be null
  int64_t x_stride, z_stride, dy_stride;
  const float *mean, *rstd;
  const Real* along;                 // [rows, groups W], added to dx, may be dx itself or null
  Real *dx, *dz;                     // may be null
  float *weight_parts, *bias_parts;  // [parts, groups W] each; may be null
  uint32_t segments, groups, walks;
  int W;
  float inverse_count;
  GateKind gate;
};

// One number: what goes into the sums over a segment, and what comes out of them.
template <Norm kNorm>
struct Element {
  float n, dn;         // x, less the mean; gradient of n
  float a = 1, slope;  // of the gate
  float wg;            // dy w

  template <class Real>
  __device__ __forceinline__ Element(const Backward<Real>& b, float x, float z, float s, float w,
                                     float dy, float mean)
      : n(x - mean), wg(dy * w) {
    dn = wg;
    if constexpr (kNorm == Norm::gated) {
      a = b.gate.silu ? z * s : s;
      slope = b.gate.silu ? s + a * (1 - s) : a * (1 - s);
      dn *= a;
    }
  }
};

// Adds the sums of a block's walks, [kPerBlock, W] in `shared`, and writes them as its part.
template <class L>
__device__ void write_block_sum(const float (&sum)[L::kSlots][L::kWidth], int packs, int W,
                                float* shared, float* part) {
  __syncthreads();
  float* const mine = shared + threadIdx.x / L::kLanes * W;
  L::each(packs, [&](int j, int column) { store_floats(mine + column, sum[j]); });
  __syncthreads();
  for (int i = threadIdx.x; i < W; i += L::kThreads) {
    float total = 0;
#pragma unroll
    for (int u = 0; u < L::kPerBlock; ++u) total += shared[u * W + i];
    part[i] = total;
  }
}

// The packs of a thread on their way from memory: two rounds of them, in shared memory that no
// other thread looks at. Where a segment is too long for that, they are read from memory when asked
// for.
template <Norm kNorm, class L, class Real>
struct Flow {
  static constexpr int kTensors = kNorm == Norm::gated ? 3 : 2;  // x, dy, z
  static constexpr int kBytes = L::kPacks > 0 ? 2 * kTensors* L::kSlots* L::kThreads * 16 : 0;
  using Line = Pack<Real, L::kWidth>;

  const Real* from[kTensors];
  Line* mine;

  __device__ __forceinline__ Line* at(int stage, int tensor, int j) const {
    return mine + ((stage * kTensors + tensor) * L::kSlots + j) * L::kThreads;
  }
  __device__ __forceinline__ void fetch(int stage, int count) const {
    if constexpr (L::kPacks > 0) {
      L::each(count, [&](int j, int column) {
#pragma unroll
        for (int i = 0; i < kTensors; ++i) {
          const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(at(stage, i, j)));
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from[i] + column)
                       : "memory");
        }
      });
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
  }
  __device__ __forceinline__ Line get(int stage, int tensor, int j, int column) const {
    if constexpr (L::kPacks > 0) return *at(stage, tensor, j);
    return load<L::kWidth>(from[tensor] + column);
  }
};

// What a walk does next.
struct Step {
  uint32_t s;
  int count;  // of packs; 0: nothing
  float mean, root;
};

// Blocks of 256 threads that a multiprocessor has registers for.
constexpr int64_t blocks_of(Norm norm, int64_t packs_a_lane) {
  return norm != Norm::scaled && packs_a_lane == 3 ? 2 : 3;
}

template <Norm kNorm, class L, class Real>
__global__ void __launch_bounds__(L::kThreads, L::kThreads <= 256
                                                   ? blocks_of(kNorm, L::kPacks) * 256 / L::kThreads
                                                   : 1)
    norm_backward(const Backward<Real> a, int packs) {
  constexpr int kWidth = L::kWidth;
  extern __shared__ __align__(16) float shared[];
  const uint32_t walk = blockIdx.x * L::kPerBlock + threadIdx.x / L::kLanes;
  const bool in_block = L::kPacks > 0 && L::kPerBlock > 1 && a.groups == 1;
  const int start = a.groups == 1 ? 0 : static_cast<int>(walk % a.groups) * a.W;
  const int64_t part = in_block ? blockIdx.x : walk / a.groups;
  const int64_t part_at = part * a.groups * a.W + start;

  float dw[L::kSlots][kWidth] = {}, db[L::kSlots][kWidth] = {};
  if constexpr (L::kPacks == 0) {  // the sums are kept in the parts themselves
    if (walk < a.walks)
      L::each(packs, [&](int, int column) {
        for (int k = 0; k < kWidth; ++k) {
          if (a.weight_parts) a.weight_parts[part_at + column + k] = 0;
          if (a.bias_parts) a.bias_parts[part_at + column + k] = 0;
        }
      });
  }

  Flow<kNorm, L, Real> flow;
  flow.mine = reinterpret_cast<Pack<Real, kWidth>*>(shared) + threadIdx.x;
  const auto begin = [&](uint32_t round) {
    Step step{.s = round * a.walks + walk, .count = 0, .mean = 0, .root = 0};
    if (walk < a.walks && step.s < a.segments) {
      step.count = packs;
      if (kNorm == Norm::centred) step.mean = a.mean[step.s];
      step.root = a.rstd[step.s];
      flow.from[0] = segment_at(a.x, a.x_stride, step.s, a.groups, a.W);
      flow.from[1] = segment_at(a.dy, a.dy_stride, step.s, a.groups, a.W);
      if constexpr (kNorm == Norm::gated)
        flow.from[2] = segment_at(a.z, a.z_stride, step.s, a.groups, a.W);
    }
    return step;
  };

  const uint32_t rounds = (a.segments + a.walks - 1) / a.walks;
  Step next = begin(0);
  flow.fetch(0, next.count);
  for (uint32_t round = 0; round < rounds; ++round) {
    const Step now = next;
    const int stage = static_cast<int>(round % 2);
    if constexpr (L::kPacks > 0) {
      next = begin(round + 1);
      flow.fetch(1 - stage, next.count);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    }
    float sigmoids[L::kSlots][kWidth];
    if (kNorm == Norm::gated && L::kPacks > 0)
      L::each(now.count, [&](int j, int column) {
        const auto gate = flow.get(stage, 2, j, column);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sigmoids[j][k] = gate_sigmoid(to_float(gate.at[k]));
      });
    // Calls f(element, its dy, k) for each number of a pack.
    const auto each_of = [&](int j, int column, const auto& f) {
      const auto in = flow.get(stage, 0, j, column), dy = flow.get(stage, 1, j, column);
      Pack<Real, kWidth> gate, weight;
      if (kNorm == Norm::gated) gate = flow.get(stage, 2, j, column);
      if (a.weight) weight = load<kWidth>(a.weight + start + column);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float g = to_float(dy.at[k]), w = a.weight ? to_float(weight.at[k]) : 1;
        float of_gate = 0, sigmoid = 0;
        if (kNorm == Norm::gated) {
          of_gate = to_float(gate.at[k]);
          sigmoid = L::kPacks > 0 ? sigmoids[j][k] : gate_sigmoid(of_gate);
        }
        f(Element<kNorm>(a, to_float(in.at[k]), of_gate, sigmoid, w, g, now.mean), g, k);
      }
    };

    float flat = 0, along = 0;  // sums of dn and of dn n
    L::each(now.count, [&](int j, int column) {
      each_of(j, column, [&](const Element<kNorm>& e, float g, int k) {
        flat += e.dn;
        along += e.dn * e.n;
        const float to_weight = g * e.a * e.n * now.root;
        if constexpr (L::kPacks > 0) {
          dw[j][k] += to_weight;
          if (kNorm == Norm::centred) db[j][k] += g;
        } else {
          if (a.weight_parts) a.weight_parts[part_at + column + k] += to_weight;
          if (a.bias_parts) a.bias_parts[part_at + column + k] += g;
        }
      });
    });
    const float root = now.root;
    along = sum_lanes<L::kLanes>(along) * a.inverse_count * root * root;
    flat = kNorm == Norm::centred ? sum_lanes<L::kLanes>(flat) * a.inverse_count : 0;

    L::each(now.count, [&](int j, int column) {
      const int64_t at = static_cast<int64_t>(now.s) * a.W + column;
      Pack<Real, kWidth> to_x, to_z, before;
      if (kNorm != Norm::gated && a.along) before = load<kWidth>(a.along + at);
      each_of(j, column, [&](const Element<kNorm>& e, float, int k) {
        if (kNorm != Norm::gated) {
          const float d = root * (e.dn - flat - e.n * along);
          to_x.at[k] = from_float<Real>(a.along ? to_float(before.at[k]) + d : d);
        } else if (a.gate.first) {  // n is x a, e.n is x: the gradient of n goes to both
          const float d = root * (e.wg - e.n * e.a * along);
          to_x.at[k] = from_float<Real>(d * e.a);
          to_z.at[k] = from_float<Real>(d * e.n * e.slope);
        } else {
          to_x.at[k] = from_float<Real>(root * (e.dn - e.n * along));
          to_z.at[k] = from_float<Real>(root * e.wg * e.n * e.slope);
        }
      });
      if (a.dx) store(a.dx + at, to_x);
      if (kNorm == Norm::gated && a.dz) store(a.dz + at, to_z);
    });
    if constexpr (L::kPacks == 0) next = begin(round + 1);
  }

  if constexpr (L::kPacks > 0) {
    if (in_block) {
      if (a.weight_parts) write_block_sum<L>(dw, packs, a.W, shared, a.weight_parts + part_at);
      if (kNorm == Norm::centred && a.bias_parts)
        write_block_sum<L>(db, packs, a.W, shared, a.bias_parts + part_at);
    } else if (walk < a.walks) {
      L::each(packs, [&](int j, int column) {
        if (a.weight_parts) store_floats(a.weight_parts + part_at + column, dw[j]);
        if (a.bias_parts) store_floats(a.bias_parts + part_at + column, db[j]);
      });
    }
  }
}

// How many rows of partial sums there are: as many as keep 132 multiprocessors busy once.
int64_t part_count(Norm norm, Dtype dtype, int64_t R, int64_t groups, int64_t W) {
  const int64_t lanes = lanes_of(dtype, W);
  const int64_t packs = ceil_div(ceil_div(W * size_of(dtype), 16), lanes);
  const int64_t blocks = 132 * blocks_of(norm, packs);
  if (groups == 1 && lanes <= 32) return std::min(ceil_div(R, 256 / lanes), blocks);
  return std::min(R, std::max<int64_t>(1, blocks * 256 / (lanes * groups)));
}

struct Given {
  Tensor x, z{}, weight{}, dy, mean{}, rstd;
  Tensor along{};  // what is added to the gradient of x: a tensor of its own, or that gradient
  int64_t groups = 1;
  bool mean_of_squares = true;
  GateKind gate{};
};

struct Wanted {
  Tensor x, z{}, weight{}, bias{};
};

template <Norm kNorm>
void launch(const Given& in, const Wanted& out) {
  const int64_t R = in.x.size(0), D = in.x.size(1), W = std::max<int64_t>(1, D / in.groups);
  const Device device = in.x.device();
  const bool sums = out.weight || out.bias;
  const int64_t parts = sums ? part_count(kNorm, in.x.dtype(), R, in.groups, W) : 0;
  const Tensor weight_parts = out.weight ? empty({parts, D}, Dtype::f32, device) : Tensor();
  const Tensor bias_parts = out.bias ? empty({parts, D}, Dtype::f32, device) : Tensor();
  if (device.is_meta() || D == 0) return;
  for_cuda_dtype(in.x.dtype(), [&]<class Real>() {
    const bool vectors = by_vectors<Real>(in.x, W) && by_vectors<Real>(in.z, W) &&
                         by_vectors<Real>(in.weight, W) && by_vectors<Real>(in.dy, W) &&
                         by_vectors<Real>(in.along, W);
    Backward<Real> a{.x = dptr<Real>(in.x),
                     .z = dptr<Real>(in.z),
                     .weight = dptr<Real>(in.weight),
                     .dy = dptr<Real>(in.dy),
                     .x_stride = in.x.stride(0),
                     .z_stride = in.z ? in.z.stride(0) : 0,
                     .dy_stride = in.dy.stride(0),
                     .mean = dptr<float>(in.mean),
                     .rstd = dptr<float>(in.rstd),
                     .along = dptr<Real>(in.along),
                     .dx = dptr<Real>(out.x),
                     .dz = dptr<Real>(out.z),
                     .weight_parts = dptr<float>(weight_parts),
                     .bias_parts = dptr<float>(bias_parts),
                     .segments = static_cast<uint32_t>(R * in.groups),
                     .groups = static_cast<uint32_t>(in.groups),
                     .walks = 0,  // below
                     .W = static_cast<int>(W),
                     .inverse_count = in.mean_of_squares ? 1 / static_cast<float>(W) : 1,
                     .gate = in.gate};
    if (R > 0)
      for_lanes<Real>(vectors, W, [&]<class L>(int packs) {
        const bool in_block = L::kPacks > 0 && L::kPerBlock > 1 && in.groups == 1;
        const int64_t walks = !sums      ? R * in.groups
                              : in_block ? parts * L::kPerBlock
                                         : parts * in.groups;
        a.walks = static_cast<uint32_t>(walks);
        const auto blocks = static_cast<unsigned>(ceil_div(walks, L::kPerBlock));
        const auto of_sums = static_cast<int>(L::kPerBlock * W * sizeof(float));
        const int shared = L::kPacks == 0 ? 0 : std::max(Flow<kNorm, L, Real>::kBytes, of_sums);
        void (*const kernel)(Backward<Real>, int) = norm_backward<kNorm, L, Real>;
        if (shared > 40 * 1024)  // beside a little that is not dynamic
          allow_shared_memory(kernel, shared);
        kernel<<<blocks, L::kThreads, shared, cuda_stream(device)>>>(a, packs);
      });
    sum_columns(dptr<float>(weight_parts), parts, D, dptr<Real>(out.weight), device,
                dptr<float>(bias_parts), dptr<Real>(out.bias));
  });
  check_launch("norm backward");
}

Tensor vector_of(const Tensor& t) { return t ? t.contiguous() : t; }

// The gradient of a residual is that of x.
template <Norm kNorm>
void launch_summed(const Given& in, const Wanted& out, const Tensor& residual) {
  Wanted one = out;
  if (!one.x) one.x = residual;
  launch<kNorm>(in, one);
  if (out.x && residual && !residual.is_meta()) residual.copy_from(out.x);
}

void of_rms(const RmsNorm::Inputs<Tensor>& x, const RmsNorm::Options& o,
            const RmsNorm::Saved& saved, const Tensor& dy, const Tensor& along,
            const RmsNorm::Inputs<Tensor>& dx) {
  launch_summed<Norm::scaled>({.x = x.residual ? saved.sum : with_rows(x.x),
                               .weight = vector_of(x.weight),
                               .dy = with_rows(dy),
                               .rstd = saved.rstd,
                               .along = vector_of(along),
                               .groups = o.groups},
                              {.x = dx.x, .weight = dx.weight}, dx.residual);
}

void of_layer(const LayerNorm::Inputs<Tensor>& x, const LayerNorm::Options& o,
              const LayerNorm::Saved& saved, const Tensor& dy, const Tensor& along,
              const LayerNorm::Inputs<Tensor>& dx) {
  launch_summed<Norm::centred>({.x = x.residual ? saved.sum : with_rows(x.x),
                                .weight = vector_of(x.weight),
                                .dy = with_rows(dy),
                                .mean = saved.mean,
                                .rstd = saved.rstd,
                                .along = vector_of(along),
                                .groups = o.groups},
                               {.x = dx.x, .weight = dx.weight, .bias = dx.bias}, dx.residual);
}

}  // namespace

void RmsNorm::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  of_rms(x, o, saved, dy.y, dy.sum, dx);
}
void RmsNorm::cuda_backward_onto(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (dy.sum) dx.x.add_from(dy.sum);
  of_rms(x, o, saved, dy.y, dx.x, dx);
}

void LayerNorm::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  of_layer(x, o, saved, dy.y, dy.sum, dx);
}
void LayerNorm::cuda_backward_onto(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                   const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (dy.sum) dx.x.add_from(dy.sum);
  of_layer(x, o, saved, dy.y, dx.x, dx);
}

void GatedNorm::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  launch<Norm::gated>({.x = with_rows(x.x),
                       .z = with_rows(x.z),
                       .weight = vector_of(x.weight),
                       .dy = with_rows(dy.y),
                       .rstd = saved.rstd,
                       .groups = o.groups,
                       .gate = {o.gate == "silu", o.gate_first}},
                      {.x = dx.x, .z = dx.z, .weight = dx.weight});
}

void L2Norm::cuda_backward(const Inputs<Tensor>& x, const Options&, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  launch<Norm::scaled>(
      {.x = with_rows(x.x), .dy = with_rows(dy.y), .rstd = saved.rstd, .mean_of_squares = false},
      {.x = dx.x});
}

}  // namespace weft::kernels
