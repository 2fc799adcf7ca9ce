// Pieces of kPiece elements, one a block, each of one tensor.
#include "kernels/optimizer/adamw.h"

#include "core/cuda.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = 8192;

struct Piece {
  float *master, *m, *v;
  const float* grad;
  __nv_bfloat16* value;
  int32_t count;
  int32_t decays;
};
static_assert(sizeof(Piece) % 4 == 0);

__device__ float block_total(float x) {
  __shared__ float part[kThreads];
  part[threadIdx.x] = x;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  return part[0];
}

__global__ void square_sums(const Piece* pieces, float* partial) {
  const Piece p = pieces[blockIdx.x];
  float sum = 0;
  for (int i = threadIdx.x * 4; i < p.count; i += kThreads * 4) {
    if (i + 4 <= p.count) {
      const float4 g = *reinterpret_cast<const float4*>(p.grad + i);
      sum += g.x * g.x + g.y * g.y + g.z * g.z + g.w * g.w;
    } else {
      for (int j = i; j < p.count; ++j) sum += p.grad[j] * p.grad[j];
    }
  }
  sum = block_total(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: the norm, the factor, and whether the step may be taken.
__global__ void decide(const float* partial, int64_t n, float clip, StepNumbers* numbers) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += partial[i];
  sum = block_total(sum);
  if (threadIdx.x > 0) return;
  const float norm = sqrtf(sum);
  numbers->norm = norm;
  numbers->factor = clip > 0 && norm > clip ? clip / norm : 1.0f;
  const bool finite = isfinite(norm) && isfinite(numbers->loss) && isfinite(numbers->total);
  if (!finite && numbers->failed == 0) numbers->failed = numbers->step;
}

struct Betas {
  float b1, b2, eps;
};

__device__ float updated(float p, float g, float& m, float& v, const Betas& b, float rate,
                         float root, float keep) {
  m = b.b1 * m + (1 - b.b1) * g;
  v = b.b2 * v + (1 - b.b2) * g * g;
  return keep * p - rate * m / (sqrtf(v) * root + b.eps);
}

__device__ bool finite(float p, float m, float v) {
  return isfinite(p) && isfinite(m) && isfinite(v);
}

// What is not finite afterwards is seen here, in registers; blocks that begin later may then change
// nothing, which makes no difference to a state that is lost.
__global__ void update_pieces(const Piece* pieces, StepNumbers* numbers, Betas b) {
  if (numbers->failed != 0) return;
  const Piece p = pieces[blockIdx.x];
  const float rate = numbers->rate, root = numbers->root, factor = numbers->factor;
  const float keep = 1 - (p.decays ? numbers->decay : 0.0f);
  bool good = true;
  for (int i = threadIdx.x * 4; i < p.count; i += kThreads * 4) {
    if (i + 4 <= p.count) {
      const float4 g = *reinterpret_cast<const float4*>(p.grad + i);
      float4 x = *reinterpret_cast<float4*>(p.master + i);
      float4 m = *reinterpret_cast<float4*>(p.m + i);
      float4 v = *reinterpret_cast<float4*>(p.v + i);
      x.x = updated(x.x, g.x * factor, m.x, v.x, b, rate, root, keep);
      x.y = updated(x.y, g.y * factor, m.y, v.y, b, rate, root, keep);
      x.z = updated(x.z, g.z * factor, m.z, v.z, b, rate, root, keep);
      x.w = updated(x.w, g.w * factor, m.w, v.w, b, rate, root, keep);
      good = good && finite(x.x, m.x, v.x) && finite(x.y, m.y, v.y) && finite(x.z, m.z, v.z) &&
             finite(x.w, m.w, v.w);
      *reinterpret_cast<float4*>(p.master + i) = x;
      *reinterpret_cast<float4*>(p.m + i) = m;
      *reinterpret_cast<float4*>(p.v + i) = v;
      if (p.value) {
        __nv_bfloat162 y[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
        *reinterpret_cast<uint2*>(p.value + i) = *reinterpret_cast<uint2*>(y);
      }
    } else {
      for (int j = i; j < p.count; ++j) {
        const float x =
            updated(p.master[j], p.grad[j] * factor, p.m[j], p.v[j], b, rate, root, keep);
        good = good && finite(x, p.m[j], p.v[j]);
        p.master[j] = x;
        if (p.value) p.value[j] = __float2bfloat16_rn(x);
      }
    }
  }
  if (!good) numbers->failed = numbers->step;
}

__global__ void add_losses(const float* losses, int64_t n, StepNumbers* numbers) {
  float loss = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) {
    loss += losses[2 * i];
    total += losses[2 * i + 1];
  }
  numbers->loss = loss;
  numbers->total = total;
}

__global__ void take_failed(const float* failed, int64_t n, StepNumbers* numbers) {
  for (int64_t i = 0; i < n; ++i)
    if (failed[i] != 0 && (numbers->failed == 0 || failed[i] < numbers->failed))
      numbers->failed = failed[i];
}

}  // namespace

static_assert(kAdamwCut % kPiece == 0);
int64_t adamw_pieces(int64_t numel) { return ceil_div(numel, kPiece); }

CudaAdamw::CudaAdamw(const std::vector<AdamwTensor>& list, const AdamwSettings& settings,
                     const AdamwShare& share)
    : settings_(settings), first_(share.first) {
  if (list.empty()) {  // more ranks than pieces
    partial_ = empty({share.all}, Dtype::f32, share.device);
    return;
  }
  const Device device = list.front().master.device();
  std::vector<Piece> pieces;
  for (const AdamwTensor& t : list)
    for (int64_t at = 0; at < t.master.numel(); at += kPiece) {
      const auto moved = [at](auto* p) { return p ? p + at : p; };
      pieces.push_back({moved(dptr<float>(t.master)), moved(dptr<float>(t.m)),
                        moved(dptr<float>(t.v)), moved(dptr<const float>(t.grad)),
                        moved(dptr<__nv_bfloat16>(t.value)),
                        static_cast<int32_t>(std::min(kPiece, t.master.numel() - at)), t.decay});
    }
  pieces_ = static_cast<int64_t>(pieces.size());
  table_ = upload(pieces, device);
  partial_ = empty({share.all < 0 ? pieces_ : share.all}, Dtype::f32, device);
}

void CudaAdamw::step(const Tensor& numbers) const {
  sum_squares();
  update(numbers);
}

void CudaAdamw::sum_squares() const {
  if (pieces_ == 0 || table_.is_meta()) return;
  square_sums<<<static_cast<unsigned>(pieces_), kThreads, 0, cuda_stream(table_.device())>>>(
      reinterpret_cast<const Piece*>(table_.raw()), dptr<float>(partial_) + first_);
  check_launch("adamw's norm");
}

void CudaAdamw::update(const Tensor& numbers) const {
  if (numbers.is_meta()) return;
  const cudaStream_t stream = cuda_stream(numbers.device());
  auto* const n = reinterpret_cast<StepNumbers*>(numbers.raw());
  decide<<<1, kThreads, 0, stream>>>(dptr<const float>(partial_), partial_.numel(),
                                     static_cast<float>(settings_.clip), n);
  if (pieces_ > 0)
    update_pieces<<<static_cast<unsigned>(pieces_), kThreads, 0, stream>>>(
        reinterpret_cast<const Piece*>(table_.raw()), n,
        {static_cast<float>(settings_.beta1), static_cast<float>(settings_.beta2),
         static_cast<float>(settings_.eps)});
  check_launch("adamw");
}

void sum_losses(const Tensor& losses, const Tensor& numbers) {
  if (numbers.is_meta()) return;
  add_losses<<<1, 1, 0, cuda_stream(numbers.device())>>>(
      dptr<const float>(losses), losses.size(0), reinterpret_cast<StepNumbers*>(numbers.raw()));
  check_launch("the sum of losses");
}

void join_failed(const Tensor& failed, const Tensor& numbers) {
  if (numbers.is_meta()) return;
  take_failed<<<1, 1, 0, cuda_stream(numbers.device())>>>(
      dptr<const float>(failed), failed.numel(), reinterpret_cast<StepNumbers*>(numbers.raw()));
  check_launch("the ranks' failures");
}

}  // namespace weft::kernels
