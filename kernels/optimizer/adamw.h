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

// Sums of the squares of the gradients, one a fixed piece of each tensor, in order. A tensor may
// be cut at multiples of kAdamwCut: its parts have the pieces that it has. CPU.
std::vector<double> gradient_squares(const std::vector<AdamwTensor>& list);
inline constexpr int64_t kAdamwCut = 1 << 14;
// The norm of all gradients together: those sums added in order. CPU.
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

// How many pieces the fused form makes of so many elements. A tensor that is cut at multiples of
// kAdamwCut has the pieces of its parts.
int64_t adamw_pieces(int64_t numel);

// The pieces of one rank among those of all.
struct AdamwShare {
  int64_t first = 0;      // pieces of the ranks before
  int64_t all = -1;       // of all ranks; -1: these are all
  Device device = kCuda;  // where this rank has none
};

// The fused form: a table of all tensors on the device, made once; their addresses must stay.
class CudaAdamw {
 public:
  CudaAdamw(const std::vector<AdamwTensor>& list, const AdamwSettings& settings,
            const AdamwShare& share = {});
  // Enqueues norm, clipping and update. `numbers` f32 [kStepNumbers] on the device.
  void step(const Tensor& numbers) const;
  // The two halves of it. Between them the other ranks' sums come into squares(), f32 [pieces of
  // all], where the first half leaves its own.
  void sum_squares() const;
  void update(const Tensor& numbers) const;
  const Tensor& squares() const { return partial_; }

 private:
  AdamwSettings settings_;
  int64_t pieces_ = 0, first_ = 0;
  Tensor table_, partial_;
};

// On a GPU: loss and total of the step, from `losses` f32 [shards, 2], added in order.
void sum_losses(const Tensor& losses, const Tensor& numbers);
// On a GPU: the first step that failed on any rank, from their own, f32 [ranks].
void join_failed(const Tensor& failed, const Tensor& numbers);

}  // namespace weft::kernels
