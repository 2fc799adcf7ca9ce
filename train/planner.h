// A dry run: the model is built and one training step is run on the meta device, where every
// allocation is counted and none is made.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "core/tensor.h"
#include "train/recipe.h"

namespace weft::train {

// What a recipe needs, in numbers of elements, FLOPs and bytes.
struct Plan {
  std::vector<std::pair<std::string, int64_t>> parameters;  // by part
  int64_t parameter_count = 0, active = 0;
  double flops_forward = 0;  // a token
  int64_t parameter_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0, activation_bytes = 0;
  int64_t teacher_bytes = 0;  // 0: the recipe names none
  int64_t decode_bytes = 0, peak = 0;
  // What a generation keeps for a text of so many tokens: eighths of the context. The last one is
  // decode_bytes.
  std::vector<std::pair<int64_t, int64_t>> decode_by_length;
  std::vector<Owned> owners;
  Shape batch;
};

// What rank `rank` of `ranks` needs. Reads the rest of the recipe; throws Error where it cannot be
// trained.
Plan make_plan(Recipe& recipe, int ranks = 1, int rank = 0);

// "train.batch = 16 with train.accumulate = 2 would need 31.02 GiB of 79.10 GiB": the largest half,
// quarter, ... of the recipe's batch that fits the device, by a plan. Empty where none does.
std::string smaller_batch(const Recipe& recipe, int ranks = 1);

}  // namespace weft::train
