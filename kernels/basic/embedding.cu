// The embedding on the GPU: a gather, and the scatter that undoes it.
#include "kernels/basic/embedding.h"

#include "kernels/basic/gather.cuh"
#include "kernels/basic/matrix.h"

namespace weft::kernels {

void Embedding::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved*) {
  const Device device = x.weight.device();
  const Tensor weight = with_rows(x.weight), ids = o.ids.to(device).contiguous();
  if (device.is_meta()) return;
  for_cuda_dtype(weight.dtype(), [&]<class T>() {
    gather_rows<T>(ids.size(0), weight.size(1), dptr<int32_t>(ids), nullptr, weight, dptr<T>(y.y),
                   device);
  });
}

void Embedding::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (!dx.weight) return;
  const Device device = x.weight.device();
  const Tensor d = with_rows(dy.y), ids = o.ids.to(device).contiguous();
  const ScatterRows scatter(ids.size(0), x.weight.size(0), x.weight.size(1), device);
  if (device.is_meta()) return;
  for_cuda_dtype(d.dtype(), [&]<class T>() {
    scatter.run<T>(dptr<int32_t>(ids), nullptr, d, 1, dptr<T>(dx.weight));
  });
}

}  // namespace weft::kernels
