// The stages of a run that learns of a teacher, by the step alone:
//   align   each mixer gives what the teacher's gives for the same input
//   match   the logits are the teacher's
//   text    the text itself, as in every run
// Each has a schedule of its own. A run without a teacher is one stage, text.
#pragma once

#include "train/optimizer.h"

namespace weft::train {

enum class StageKind : uint8_t { align, match, text };

struct Stage {
  StageKind kind = StageKind::text;
  int64_t begin = 0, steps = 0;
  double lr = 0;
  int64_t length = 0;  // of its texts; 0: the context
};

// Of `step` (0-based).
Stage stage_at(const Recipe& recipe, int64_t step);
// "stage 1 of 3: mixers are aligned, 200 steps at lr 0.001, text of 64"
std::string in_words(const Recipe& recipe, const Stage& stage);

// The part of its highest rate that the schedule gives a step, and AdamW's rate.
double part_at(const Recipe& recipe, int64_t step);
double rate_at(const Recipe& recipe, int64_t step);
// Nothing decays while mixers are aligned: what learns nothing stays as it is, to the bit.
kernels::AdamwSettings settings_at(const AdamW& optimizer, const Recipe& recipe, int64_t step);

}  // namespace weft::train
