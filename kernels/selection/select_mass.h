// Which blocks of keys a query sees, so that no more than a given part of its softmax can be lost:
// a mask as that of select_blocks, and for each query the part that may be lost at most.
//
// Of a complete block c before the query's own only its mean key m and its radius r are read, the
// largest distance of a key of it from m. By Cauchy and Schwarz, and by Jensen, its keys j have
//   block exp(s q.m)  <=  sum_j exp(s q.k_j)  <=  block exp(s q.m + s |q| r)
// So if K are the blocks kept and L those left out, with the query's own key k_t beside K,
//   bound = D / (D + N),   D = sum over L of the right side,
//                          N = exp(s q.k_t) + sum over K of the left side
// is at least what the softmax over all keys gives to L. Blocks are kept in the order of their
// right sides, of equal ones the lower number first: those that are forced, then as many as make
// `top_k`, then more until the bound is at most `lost`. Where that asks for all, nothing is lost.
// It holds up to the rounding of the numbers that it is made of. No gradient.
#pragma once

#include "kernels/selection/select_blocks.h"

namespace weft::kernels {

// [B, slots, Hk]: of each complete block of k [B, S, Hk, K] with these means; 0 in an empty slot.
Tensor block_radius(const Tensor& k, const Tensor& means, const SelectBlocks& o);

struct SelectedMass {
  Tensor mask;   // u8 [B, H, T, slots]
  Tensor bound;  // [B, H, T], f32 or f64
};
// q [B, T, H, K], k [B, S, Hk, K], means and radius as above; of o: block, top_k (at least so many
// blocks), first, recent, scale, cu_seqlens, position.
SelectedMass select_mass(const Tensor& q, const Tensor& k, const Tensor& means,
                         const Tensor& radius, const SelectBlocks& o, double lost);

// The same on a GPU, where those above come to. In builds that have CUDA. The last arguments are
// written.
void cuda_block_radius(const Tensor& k, const Tensor& means, const SelectBlocks& o,
                       const Tensor& radius);
void cuda_select_mass(const Tensor& q, const Tensor& k, const Tensor& means, const Tensor& radius,
                      const SelectBlocks& o, double lost, const SelectedMass& result);

}  // namespace weft::kernels
