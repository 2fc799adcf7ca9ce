// AdamW over a list of tensors (Loshchilov and Hutter, arXiv:1711.05101), with the norm of all
// gradients by which they are clipped:
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   p -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay p)
// On the CPU the caller reads the norm and passes the factor on g; on a GPU both passes are one
// launch each over all tensors, and neither the norm nor the factor comes to the host in between.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace weft::kernels {

struct AdamwTensor {
  Tensor master, m, v, grad;  // one shape, contiguous, one float type (f32 on a GPU)
  Tensor value;  // bf16 copy of master for the model's use; absent where it uses master
  bool decay = true;
};

struct AdamwSettings {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip = 0;  // largest norm; 0: none. GPU only
};

// The norm of all gradients together; sums run in f64 over fixed pieces, in order. CPU.
double gradient_norm(const std::vector<AdamwTensor>& list);
// One step with all gradients multiplied by `factor`. `step` counts from 1. Returns false where a
// value of master, m or v is not finite afterwards: then all of them are lost. CPU.
[[nodiscard]] bool adamw(const std::vector<AdamwTensor>& list, const AdamwSettings& s, int64_t step,
                         double lr, double factor);

// What passes between the host and a step on the GPU, as floats in this order.
struct StepNumbers {
  // from the host
  float rate = 0;   // lr / (1 - beta1^step)
  float root = 0;   // (1 - beta2^step)^-1/2
  float decay = 0;  // lr * weight_decay
  float step = 0;   // counts from 1
  // from the device
  float loss = 0, total = 0;  // summed over micro-batches by the caller
  float norm = 0;
  float factor = 0;  // on the gradients
  float failed =
      0;  // the first step whose loss or norm was not finite, or that left a parameter or
          // a moment so; 0: none. No step after it changes anything
};
inline constexpr int64_t kStepNumbers = sizeof(StepNumbers) / sizeof(float);
StepNumbers step_numbers(const AdamwSettings& s, int64_t step, double lr);

// The fused form: a table of all tensors on the device, made once; their addresses must stay.
class CudaAdamw {
 public:
  CudaAdamw(const std::vector<AdamwTensor>& list, const AdamwSettings& settings);
  // Enqueues norm, clipping and update. `numbers` f32 [kStepNumbers] on the device.
  void step(const Tensor& numbers) const;

 private:
  AdamwSettings settings_;
  int64_t pieces_ = 0;
  Tensor table_, partial_;
};

}  // namespace weft::kernels
