// The products of a linear layer on a GPU, by cuBLASLt.
#include "kernels/products/matmul.h"

#include "kernels/tile/gemm.h"

namespace weft::kernels {

void Matmul::cuda_forward(const Inputs<Tensor>& x, const Options&, Outputs<Tensor>& y, Saved*) {
  cuda_gemm(x.x, x.w.transpose(0, 1), y.y, {.bias = x.bias ? x.bias.contiguous() : Tensor()});
}

namespace {

// beta: of what dx.x holds.
void gradients(const Matmul::Inputs<Tensor>& x, const Matmul::Outputs<Tensor>& dy,
               const Matmul::Inputs<Tensor>& dx, float beta) {
  if (dx.x) cuda_gemm(dy.y, x.w, dx.x, {.beta = beta});
  if (dx.w) cuda_gemm(dy.y.transpose(0, 1), x.x, dx.w);
  if (dx.bias) cuda_column_sums(dy.y, dx.bias);
}

}  // namespace

void Matmul::cuda_backward(const Inputs<Tensor>& x, const Options&, const Saved&,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  gradients(x, dy, dx, 0);
}

void Matmul::cuda_backward_onto(const Inputs<Tensor>& x, const Options&, const Saved&,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  gradients(x, dy, dx, 1);
}

void Matmul::cuda_add_gradient(const Inputs<Tensor>& x, const Options&, const Saved&,
                               const Outputs<Tensor>& dy, const Tensor& sum) {
  cuda_gemm(dy.y.transpose(0, 1), x.x, sum, {.beta = 1});
}

}  // namespace weft::kernels
