// Copies of rows; the backward pass adds rows up in order, each thread on its own columns.
#include "kernels/lookup/embedding.h"

#include "kernels/lookup/embedding_reference.h"
#include "kernels/rows/rows.h"

namespace weft::kernels {
namespace {

const Registered<Embedding> registered;

}  // namespace

void Embedding::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.weight.dims() == 2, "embedding: weight has shape ", x.weight.shape(),
          ", expected [V, D]");
  require(o.ids.defined() && o.ids.dims() == 1, "embedding: ids has shape ", o.ids.shape(),
          ", expected i32 [R]");
  check_index_shape("embedding: ids", o.ids, o.ids.shape());
  check_index("embedding: ids", o.ids, x.weight.size(0), "the vocabulary");
}

Outputs<Embedding> Embedding::outputs(const Inputs<Tensor>& x, const Options& o) {
  return {empty({o.ids.size(0), x.weight.size(1)}, x.weight.dtype(), x.weight.device())};
}

void Embedding::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y, Saved*) {
  const Tensor weight = with_rows(x.weight), ids = o.ids.contiguous();
  if (weight.is_meta()) return;
  for_real(weight.dtype(), [&]<class Real>() {
    const auto from = rows<const Real>(weight);
    const auto to = rows<Real>(y.y);
    const int64_t D = weight.size(1);
    parallel_ranges(ids.size(0), row_grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) std::copy_n(from[ids.data<int32_t>()[r]], D, to[r]);
    });
  });
}

void Embedding::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                             const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor d = with_rows(dy.y), ids = o.ids.contiguous();
  if (d.is_meta() || !dx.weight) return;
  for_real(d.dtype(), [&]<class Real>() {
    const auto flow = rows<const Real>(d);
    scatter_rows<Real>(
        ids.size(0), x.weight.size(0), x.weight.size(1), ids.data<int32_t>(),
        [&](int64_t r) { return flow[r]; }, [](int64_t) { return Real(1); },
        dx.weight.data<Real>());
  });
}

Tensor places_in_documents(const Tensor& cu_seqlens, int64_t T, Device device) {
  const Tensor places = empty({T}, Dtype::i32, device);
  if (device.is_meta()) return places;
  if constexpr (has_cuda)
    if (device.is_cuda()) return cuda_places_in_documents(cu_seqlens, places), places;
  const View<const int32_t> cu = view<const int32_t>(cu_seqlens);
  for (int64_t n = 0; n + 1 < cu.size(0); ++n)
    for (int32_t t = cu(n); t < cu(n + 1); ++t) places.data<int32_t>()[t] = t - cu(n);
  return places;
}

}  // namespace weft::kernels
