// Linear attention backward on Hopper: each gradient is a scan (scan_hopper.cuh) with other tensors
// in the places of q, k and v.
//   dQ   forwards    q = dout  k = v     v = k
//   dK   backwards   q = v     k = dout  v = q
//   dV   backwards   q = k     k = q     v = dout
// If heads share a key, their dq and dk are added afterwards, in one order (`sum_heads`). If the
// gates' gradients are wanted, dQ keeps its states, dK meets them, and `share_gates` sums.
#include "kernels/linear/gates.cuh"
#include "kernels/linear/scan_hopper.cuh"

namespace weft::kernels {
namespace linear::hopper {
namespace {

constexpr int kGateWarps = 4;

// dg of every chunk of a head, a warp each, from the shares of the scans of dQ and dK.
__global__ void __launch_bounds__(32 * kGateWarps)
    share_gates(const __grid_constant__ Sizes p, const int heads, float* dg) {
  __shared__ float memory[kGateWarps][SharedDecay<kTokens>::kFloats];
  const int lane = tile::lane_index(), warp = tile::warp_index();
  const int64_t index = int64_t{blockIdx.x} * kGateWarps + warp;
  if (index >= int64_t{heads} * p.chunks()) return;
  const int chunk = static_cast<int>(index % p.chunks());
  const int64_t head = index / p.chunks();
  const int b = static_cast<int>(head / p.H), h = static_cast<int>(head % p.H);
  const int begin = chunk * kTokens, n = min(kTokens, p.T - begin);
  const SharedDecay<kTokens> decay{memory[warp]};
  const float2 gates = lane_gates(p.gates, b, begin, begin + n, h);
  decay.set(gates.x, gates.y);
  __syncwarp();

  float later[2] = {0.f, 0.f}, earlier[2] = {0.f, 0.f}, through = 0.f;
  for (int part = 0; part < p.parts(); ++part) {
    const int64_t at =
        ((head * p.parts() + part) * p.chunks() + chunk) * kTokens + 2 * int64_t{lane};
    const float2 x = tile::load_pair(p.shares.x + at), y = tile::load_pair(p.shares.y + at);
    const float2 pairs = tile::load_pair(p.shares.pairs + at);
    later[0] += x.x + pairs.x;
    later[1] += x.y + pairs.y;
    earlier[0] += y.x;
    earlier[1] += y.y;
    through += p.shares.through[index * p.parts() + part];
  }
  put_gates(decay, later, earlier, through, n, dg + (int64_t{b} * p.T + begin) * p.H + h, p.H);
}

// to[b, t, hk, d] = sum of from[b, t, h, d] over the heads h of a key. A thread has 8 channels.
__global__ void __launch_bounds__(256)
    sum_heads(const uint4* from, const TokenRows<bf16> to, const int64_t count, const int T,
              const int keys, const int group, const int units) {
  const int64_t index = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (index >= count) return;
  const int unit = static_cast<int>(index % units), hk = static_cast<int>(index / units % keys);
  const int64_t token = index / units / keys;
  const uint4* x = from + (token * keys + hk) * group * units + unit;
  float sum[8] = {};
  for (int i = 0; i < group; ++i, x += units) {
    const uint4 eight = __ldg(x);
    const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum[2 * j] += tile::low_of(pairs[j]);
      sum[2 * j + 1] += tile::high_of(pairs[j]);
    }
  }
  bf16* const place =
      to.at(static_cast<int>(token / T), static_cast<int>(token % T), hk) + 8 * unit;
  *reinterpret_cast<uint4*>(place) = {
      tile::pack_bf16(sum[0], sum[1]), tile::pack_bf16(sum[2], sum[3]),
      tile::pack_bf16(sum[4], sum[5]), tile::pack_bf16(sum[6], sum[7])};
}

struct Call {
  const Inputs<Linear>&x, &dx;
  const Tensor& dout;
  const Tensor of_heads;  // [B, T, H, K]: dq or dk of each head; absent if no heads share a key
  GateShares shares;
  CudaProblem<bf16> p;

  // One scan: o, by heads if their sum is what is wanted.
  template <bool kBackwards, Gates kGates>
  void scan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
            const Tensor& with = Tensor()) const {
    const Tensor& out = of_heads && o.size(2) < p.H ? of_heads : o;
    const Roles roles{q, k, v, out, with};
    Sizes sizes = sizes_of(p, roles);
    sizes.shares = shares;
    if constexpr (kBackwards || kGates != Gates::unmoved) {
      launch_scan<kBackwards, kGates>(sizes, roles);
    } else {
      scan_forwards(sizes, roles);
    }
    if (&out == &o) return;
    const int units = p.K / 8, keys = p.H / p.group;
    const int64_t count = o.numel() / 8;
    launch(sum_heads, ceil_div(count, 256), 256, 0, reinterpret_cast<const uint4*>(out.raw()),
           token_rows<bf16>(o), count, p.documents.T, keys, p.group, units);
  }
  void run() const {
    if (dx.g) {
      scan<false, Gates::of_queries>(dout, x.v, x.k, dx.q, x.q);
      scan<true, Gates::of_keys>(x.v, dout, x.q, dx.k, x.k);
      const Sizes sizes = of_gates();
      const int64_t heads = int64_t{p.B} * p.H;
      launch(share_gates, ceil_div(heads * sizes.chunks(), kGateWarps), 32 * kGateWarps, 0, sizes,
             static_cast<int>(heads), dptr<float>(dx.g));
    } else {
      if (dx.q) scan<false, Gates::unmoved>(dout, x.v, x.k, dx.q);
      if (dx.k) scan<true, Gates::unmoved>(x.v, dout, x.q, dx.k);
    }
    if (dx.v) scan<true, Gates::unmoved>(x.k, x.q, dout, dx.v);
  }
  Sizes of_gates() const {
    Sizes sizes = sizes_of(p, {dout, x.v, x.k, dx.q, x.q});
    sizes.shares = shares;
    return sizes;
  }
};

}  // namespace
}  // namespace linear::hopper

// In problem.cuh.
linear::ScanScratch::ScanScratch(const Inputs<Linear>& x, const Options<Linear>& o,
                                 const Outputs<Linear>& dy, const Inputs<Linear>& dx) {
  constexpr int64_t kFewChunks = 4, kManyBlocks = 40;  // else chunks beside each other are faster
  const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), Hk = x.q.size(2);
  const int64_t K = x.q.size(3), V = x.v.size(3), chunks = ceil_div(T, kTokens);
  const int64_t slices = ceil_div(K, hopper::kSlice), parts = 4 * slices;
  const bool plain = !o.cu_seqlens && !o.normalize && !x.initial_state && !dy.final_state &&
                     !dx.initial_state && !dx.log_gamma;
  const bool gates_have_all = !dx.g || (dx.q && dx.k);  // whose scans say what the gates need
  covers = x.q.dtype() == Dtype::bf16 && plain && gates_have_all && x.q.numel() > 0 &&
           x.v.numel() > 0 && K <= 128 && V <= 128 && (H == Hk || K % 8 == 0) &&
           (chunks <= kFewChunks ||
            B * H * std::min(slices, ceil_div(V, hopper::kSlice)) >= kManyBlocks);
  if (!covers) return;
  if (H > Hk) of_heads = B * T * H * K;
  if (!dx.g) return;
  const Device device = x.q.device();
  tokens = empty({3, B, H, parts, chunks, kTokens}, Dtype::f32, device);
  through = empty({B, H, chunks, parts}, Dtype::f32, device);
}

bool linear::hopper_backward(const Inputs<Linear>& x, const Options<Linear>& o, const Tensor& dout,
                             const Inputs<Linear>& dx, const ScanScratch& scratch,
                             const Tensor& states, const Tensor& room) {
  using namespace linear::hopper;
  if (!scratch.covers || !tile::on_hopper(x.q.device())) return false;
  for (const Tensor* t : {&x.q, &x.k, &x.v, &dout, &dx.q, &dx.k, &dx.v})
    if (*t && !has_aligned_rows(*t)) return false;
  const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), K = x.q.size(3);
  Call call{.x = x,
            .dx = dx,
            .dout = dout,
            .of_heads =
                scratch.of_heads ? room.slice(0, 0, B * T * H * K).reshape({B, T, H, K}) : Tensor(),
            .shares = {},
            .p = CudaProblem<bf16>(x, o, Tensor())};
  if (dx.g) {
    float* const tokens = dptr<float>(scratch.tokens);
    const int64_t third = scratch.tokens.numel() / 3;
    call.shares = {.x = tokens,
                   .pairs = tokens + third,
                   .y = tokens + 2 * third,
                   .through = dptr<float>(scratch.through),
                   .states = states ? reinterpret_cast<uint4*>(states.raw()) : nullptr};
  }
  call.run();
  return true;
}

}  // namespace weft::kernels
