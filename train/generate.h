// Text from a model, one token at a time.
#pragma once

#include <functional>
#include <vector>

#include "layers/model.h"

namespace weft::train {

struct SamplingSettings {
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 0;         // only the k likeliest; 0: all
  double top_p = 1;          // only the smallest set of likeliest tokens with this much probability
  uint64_t seed = 1;
};

// The token drawn from logits [vocabulary]; `index` numbers the draw, so that a seed gives the same
// text again. Ties go to the lower token.
int32_t draw_token(const Tensor& logits, const SamplingSettings& settings, uint64_t index);

// Continues `prompt` (at least one token) by `count` tokens; each goes to `on_token` as it comes, which
// returns false to stop. Throws Error where prompt and count exceed `capacity`.
struct Generated {
  std::vector<int32_t> tokens;
  double tokens_per_second = 0;  // of the one-token steps
  int64_t state_bytes = 0;
};
Generated generate(const layers::Model& model, const std::vector<int32_t>& prompt, int64_t count,
                   const SamplingSettings& settings,
                   const std::function<bool(int32_t)>& on_token = nullptr);

}  // namespace weft::train
