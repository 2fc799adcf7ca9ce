// A gradient added to one that is there already. A value that several operations took gets the sum of
// their gradients; on a GPU an operation may write its own onto what came in before, in place, so that
// the sum costs no pass of its own. In bf16 that rounds once where a sum of two results rounds twice.
//
// Such an operation M, of which no input is wide, has beside what kernels/mechanism.h asks for,
//   kOnto                                        the number of that input
//   cuda_backward_onto(x, o, saved, dy, dx)      as cuda_backward, but dx of input kOnto is not empty:
//                                                the gradient is added to what it holds
#pragma once

#include "kernels/mechanism.h"

namespace weft::kernels {

template <class M>
concept AddsOnto = detail::HasCudaForm<M> && requires {
  M::kOnto;
};

// The gradients of the inputs wanted; that of kOnto is `onto`, of that input's shape and dtype.
template <class M>
requires AddsOnto<M> Inputs<M> backward_onto(const Inputs<M>& x, const Options<M>& o,
                                             const typename M::Saved& saved, const Outputs<M>& dy,
                                             const Inputs<M, bool>& wanted, const Tensor& onto) {
  for (const Field& f : M::kInputs) require(!f.wide, M::name, ": ", f.name, " is wide");
  Inputs<M> dx;
  for_fields(
      [](Tensor& d, const Tensor& t, bool want) {
        if (want && t) d = empty(t.shape(), t.dtype(), t.device());
      },
      dx, const_cast<Inputs<M>&>(x), const_cast<Inputs<M, bool>&>(wanted));
  std::get<M::kOnto>(dx.fields()) = onto;
  onto.mark_written();
  if constexpr (has_cuda) M::cuda_backward_onto(x, o, saved, dy, dx);
  return dx;
}

}  // namespace weft::kernels
