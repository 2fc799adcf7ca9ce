// Text from a model, one token at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/generation/draw.h"
#include "layers/model.h"

namespace weft::train {

using SamplingSettings = kernels::Sampling;

struct Generated {
  std::vector<int32_t> tokens;
  double tokens_per_second = 0;  // of the one-token steps
  int64_t state_bytes = 0;
  std::string how;  // how the steps were run, in a few words; empty where there is nothing to say
};

// Continues `prompt` (at least one token) by `count` tokens; each goes to `on_token` as it comes,
// which returns false to stop. On a GPU a step, with the draw at its end, is recorded as a CUDA
// graph and launched for each token, the next while the host takes this one; `record` = false
// enqueues the same work operation by operation. Throws Error as check_length() does.
Generated generate(const layers::Model& model, const std::vector<int32_t>& prompt, int64_t count,
                   const SamplingSettings& settings,
                   const std::function<bool(int32_t)>& on_token = nullptr, bool record = true);

// Throws Error where the model cannot go on from a prompt of so many tokens by `count`.
void check_length(const layers::Model& model, int64_t prompt, int64_t count);

// Generation on a GPU, after the prompt, whose last logits are given; in builds that have CUDA.
void generate_on_cuda(const layers::Model& model, layers::Generation& generation,
                      const Tensor& logits, int64_t count, const SamplingSettings& settings,
                      const std::function<bool(int32_t)>& on_token, bool record, Generated& out);

}  // namespace weft::train
