// The contract of an operation, and the one place where the device is chosen.
//
// An operation M is a struct with
//   name                          what recipes, `weft op` and messages call it
//   Inputs<X>, Outputs<X>         its tensors; X is Tensor, Var or View<T>. fields() ties them in
//                                 order
//   kInputs[], kOutputs[]         a Field for each: name, shape letters, whether it may be absent
//   Options                       settings and index tensors; each(f) visits f(name, member, help)
//   Saved                         what backward needs beside the inputs
//   check(x, o)                   throws Error that names what is wrong
//   outputs(x, o)                 allocates the outputs
//   cpu_forward(x, o, y, saved)   fills y; fills *saved unless saved is null (nothing to
//                                 differentiate)
//   cpu_backward(x, o, saved, dy, dx)
//        dy: gradients of the outputs; the first is always there, another may be absent (zero).
//        dx: for each input whose gradient is wanted, a contiguous uninitialised tensor to be
//            filled
//        whole; absent where it is not wanted.
//   cuda_forward, cuda_backward  the same on a GPU, in f32 and bf16; an operation may lack them
//   kAdded, cuda_add_gradient(x, o, saved, dy, sum)
//        optional: adds the gradient of input number kAdded to `sum`, f32, where it is not wanted
//        in dx. A weight's gradient goes straight to where those of all uses and micro-batches are
//        summed.
//   kOnto, cuda_backward_onto(x, o, saved, dy, dx)
//        optional, where no input is wide: as cuda_backward, but dx of input number kOnto holds a
//        gradient to which this one is added. A value that several operations took gets the sum of
//        their gradients: the sum costs no pass of its own, and bf16 is rounded once where a sum of
//        two results is rounded twice.
// An absent input is an undefined Tensor. The CPU forms compute in f32 and f64; bf16 is cast here.
// The CUDA forms take f32 and bf16 as they come, with wide fields always in f32.
// All forms allocate what they need first, and then return if the device is meta.
#pragma once

#include <tuple>

#include "core/tensor.h"

namespace weft::kernels {

struct Field {
  const char* name;
  const char* shape;  // letters as in kernels/README.md, "[B, T, H, K]"
  bool optional = false;
  bool wide = false;  // stays f32 where the others are bf16: gates, states, statistics, losses
};

// naive: the definition in fp64. recurrent: token by token. chunkwise: the form that trains.
enum class Form { naive, recurrent, chunkwise };

template <class M, class X = Tensor>
using Inputs = typename M::template Inputs<X>;
template <class M, class X = Tensor>
using Outputs = typename M::template Outputs<X>;
template <class M>
using Options = typename M::Options;

// Calls f(field of a, field of b, ...) for each field in turn.
template <class F, class A, class... Rest>
void for_fields(F&& f, A& a, Rest&... rest) {
  auto step = [&]<size_t I>(std::integral_constant<size_t, I>) {
    f(std::get<I>(a.fields()), std::get<I>(rest.fields())...);
  };
  [&]<size_t... I>(std::index_sequence<I...>) { (step(std::integral_constant<size_t, I>{}), ...); }
  (std::make_index_sequence<std::tuple_size_v<decltype(a.fields())>>{});
}

namespace detail {

template <class Fields>
Fields widened(Fields fields) {
  for_fields(
      [](Tensor& t) {
        if (t && t.dtype() == Dtype::bf16) t = t.to(Dtype::f32);
      },
      fields);
  return fields;
}

// Rounds to bf16 the fields that are not wide.
template <class Fields, size_t N>
void narrow(Fields& fields, const Field (&info)[N]) {
  size_t i = 0;
  for_fields(
      [&](Tensor& t) {
        if (t && !info[i].wide) t = t.to(Dtype::bf16);
        ++i;
      },
      fields);
}

template <class M>
const Tensor& leading(const Inputs<M>& x) {
  return std::get<0>(const_cast<Inputs<M>&>(x).fields());
}

template <class M>
void check_common(const Inputs<M>& x) {
  size_t i = 0;
  const Tensor& first = leading<M>(x);
  for_fields(
      [&](const Tensor& t) {
        const Field& info = M::kInputs[i++];
        if (!t) {
          require(info.optional, M::name, ": input ", info.name, " ", info.shape, " is missing");
          return;
        }
        require(is_float(t.dtype()), M::name, ": ", info.name, " is ", t.dtype(),
                ", expected f64, f32 or bf16");
        require(t.device() == first.device(), M::name, ": ", info.name, " is on ", t.device(),
                ", expected ", first.device(), " as ", M::kInputs[0].name);
        const bool same = t.dtype() == first.dtype() ||
                          (info.wide && first.dtype() == Dtype::bf16 && t.dtype() == Dtype::f32);
        require(same, M::name, ": ", info.name, " is ", t.dtype(), ", expected ", first.dtype(),
                " as ", M::kInputs[0].name);
      },
      const_cast<Inputs<M>&>(x));
}

}  // namespace detail

namespace detail {

template <class M>
concept HasCudaForm = requires {
  &M::cuda_forward;
};

template <class M>
concept AddsGradient = HasCudaForm<M> && requires {
  M::kAdded;
};

template <class M>
concept AddsOnto = HasCudaForm<M> && requires {
  M::kOnto;
};

template <class M>
void require_cuda_form(Dtype t) {
  require(has_cuda && HasCudaForm<M>, M::name, ": there is no CUDA form of it in this program; ",
          "use --device cpu");
  require(t != Dtype::f64, M::name, ": a GPU computes it in f32 and bf16; f64 runs on the CPU");
}

// Wide fields in f32, the others as they are.
template <class M>
Inputs<M> for_cuda(Inputs<M> x) {
  size_t i = 0;
  for_fields(
      [&](Tensor& t) {
        if (t && M::kInputs[i].wide) t = t.to(Dtype::f32);
        ++i;
      },
      x);
  return x;
}

// The outputs' shapes are found on the meta device; their dtypes are the leading one, or f32.
template <class M>
Outputs<M> cuda_outputs(const Inputs<M>& x, const Options<M>& o) {
  const Tensor& first = leading<M>(x);
  Inputs<M> shapes;
  for_fields(
      [](Tensor& s, const Tensor& t) {
        if (t) s = empty(t.shape(), Dtype::f32, kMeta);
      },
      shapes, const_cast<Inputs<M>&>(x));
  Outputs<M> y = M::outputs(shapes, o);
  size_t i = 0;
  for_fields(
      [&](Tensor& t) {
        if (t)
          t = empty(t.shape(), M::kOutputs[i].wide ? Dtype::f32 : first.dtype(), first.device());
        ++i;
      },
      y);
  return y;
}

template <class M>
Inputs<M> cuda_backward(const Inputs<M>& x, const Options<M>& o, const typename M::Saved& saved,
                        Outputs<M> dy, const Inputs<M, bool>& wanted, const Tensor& onto) {
  require_cuda_form<M>(leading<M>(x).dtype());
  Inputs<M> dx;
  if constexpr (has_cuda && HasCudaForm<M>) {
    const Inputs<M> in = for_cuda<M>(x);
    if constexpr (AddsOnto<M>) std::get<M::kOnto>(dx.fields()) = onto;
    for_fields(
        [](Tensor& d, const Tensor& t, bool want) {
          if (want && t && !d) d = empty(t.shape(), t.dtype(), t.device());
        },
        dx, const_cast<Inputs<M>&>(in), const_cast<Inputs<M, bool>&>(wanted));
    if (onto) onto.mark_written();
    if constexpr (AddsOnto<M>) {
      if (onto) M::cuda_backward_onto(in, o, saved, dy, dx);
    }
    if (!onto) M::cuda_backward(in, o, saved, dy, dx);
    for_fields(
        [](Tensor& d, const Tensor& t) {
          if (d) d = d.to(t.dtype());
        },
        dx, const_cast<Inputs<M>&>(x));
  }
  return dx;
}

}  // namespace detail

// Checks the inputs, allocates the outputs and fills them. `saved` is null where no gradient
// follows.
template <class M>
Outputs<M> forward(const Inputs<M>& x, const Options<M>& o, typename M::Saved* saved = nullptr) {
  detail::check_common<M>(x);
  M::check(x, o);
  if (detail::leading<M>(x).device().takes_cuda_forms()) {
    detail::require_cuda_form<M>(detail::leading<M>(x).dtype());
    Outputs<M> y = detail::cuda_outputs<M>(x, o);
    if constexpr (has_cuda && detail::HasCudaForm<M>)
      M::cuda_forward(detail::for_cuda<M>(x), o, y, saved);
    return y;
  }
  if (detail::leading<M>(x).dtype() == Dtype::bf16) {
    const auto wide = detail::widened(x);
    auto y = M::outputs(wide, o);
    M::cpu_forward(wide, o, y, saved);
    detail::narrow(y, M::kOutputs);
    return y;
  }
  auto y = M::outputs(x, o);
  M::cpu_forward(x, o, y, saved);
  return y;
}

// The gradients of those inputs for which `wanted` holds true, each of its input's dtype. On a GPU
// that of M::kOnto may be added to `onto`, which has that input's shape and dtype.
template <class M>
Inputs<M> backward(const Inputs<M>& x, const Options<M>& o, const typename M::Saved& saved,
                   Outputs<M> dy, const Inputs<M, bool>& wanted, const Tensor& onto = {}) {
  if (detail::leading<M>(x).device().takes_cuda_forms())
    return detail::cuda_backward<M>(x, o, saved, std::move(dy), wanted, onto);
  const bool narrow = detail::leading<M>(x).dtype() == Dtype::bf16;
  const auto wide = detail::widened(x);
  dy = detail::widened(dy);
  Inputs<M> dx;
  for_fields(
      [](Tensor& d, const Tensor& in, bool want) {
        if (want && in) d = empty(in.shape(), in.dtype(), in.device());
      },
      dx, const_cast<Inputs<M>&>(wide), const_cast<Inputs<M, bool>&>(wanted));
  M::cpu_backward(wide, o, saved, dy, dx);
  if (narrow)
    for_fields(
        [](Tensor& d, const Tensor& in) {
          if (d) d = d.to(in.dtype());
        },
        dx, const_cast<Inputs<M>&>(x));
  return dx;
}

// Adds the gradient of input M::kAdded to `sum`, f32, on a GPU.
template <class M>
requires detail::AddsGradient<M>
void add_gradient(const Inputs<M>& x, const Options<M>& o, const typename M::Saved& saved,
                  const Outputs<M>& dy, const Tensor& sum) {
  if constexpr (has_cuda) M::cuda_add_gradient(detail::for_cuda<M>(x), o, saved, dy, sum);
}

}  // namespace weft::kernels
