// The embedding on the GPU: a gather, and the scatter that undoes it.
#include "kernels/lookup/embedding.h"

#include "kernels/lookup/gather.cuh"
#include "kernels/rows/matrix.h"
#include "kernels/tokens/documents.cuh"

namespace weft::kernels {
namespace {

__global__ void place(const int32_t* cu, int N, int T, int32_t* places) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t >= T) return;
  places[t] = t - cu[document_at(cu, N, t)];
}

}  // namespace

void Embedding::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved*) {
  const Device device = x.weight.device();
  const Tensor weight = with_rows(x.weight), ids = o.ids.to(device).contiguous();
  if (device.is_meta()) return;
  for_cuda_dtype(weight.dtype(), [&]<class Real>() {
    gather_rows<Real>(ids.size(0), weight.size(1), dptr<int32_t>(ids), nullptr, weight,
                      dptr<Real>(y.y), device);
  });
}

void Embedding::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (!dx.weight) return;
  const Device device = x.weight.device();
  const Tensor d = with_rows(dy.y), ids = o.ids.to(device).contiguous();
  const ScatterRows scatter(ids.size(0), x.weight.size(0), x.weight.size(1), device);
  if (device.is_meta()) return;
  for_cuda_dtype(d.dtype(), [&]<class Real>() {
    scatter.run<Real>(dptr<int32_t>(ids), nullptr, d, 1, dptr<Real>(dx.weight));
  });
}

void cuda_places_in_documents(const Tensor& cu_seqlens, const Tensor& places) {
  const int64_t T = places.numel();
  if (T == 0) return;
  const Tensor cu = cu_seqlens.to(places.device());
  place<<<static_cast<unsigned>(ceil_div(T, 256)), 256, 0, cuda_stream(places.device())>>>(
      dptr<const int32_t>(cu), static_cast<int>(cu.numel() - 1), static_cast<int>(T),
      dptr<int32_t>(places));
  check_launch("places in documents");
}

}  // namespace weft::kernels
