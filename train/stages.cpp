#include "train/stages.h"

#include <algorithm>

namespace weft::train {

Stage stage_at(const Recipe& r, int64_t step) {
  const DistillSettings& d = r.distill;
  const int64_t aligned = d.align.steps, matched = aligned + d.match.steps;
  if (step < aligned) return {StageKind::align, 0, aligned, d.align.lr, d.align.length};
  if (step < matched) return {StageKind::match, aligned, d.match.steps, d.match.lr, d.match.length};
  return {StageKind::text, matched, std::max<int64_t>(0, r.train.steps - matched), r.optimizer.lr,
          0};
}

std::string in_words(const Recipe& r, const Stage& s) {
  const char* const kind = s.kind == StageKind::align   ? "1 of 3: mixers are aligned"
                           : s.kind == StageKind::match ? "2 of 3: logits are matched"
                                                        : "3 of 3: the text";
  return concat("stage ", kind, ", ", std::min(s.steps, r.train.steps - s.begin), " steps at lr ",
                s.lr, s.length > 0 ? concat(", texts of ", s.length) : "");
}

double part_at(const Recipe& r, int64_t step) {
  const Stage s = stage_at(r, step);
  return schedule_factor(r.schedule, step - s.begin, s.steps);
}

double rate_at(const Recipe& r, int64_t step) { return stage_at(r, step).lr * part_at(r, step); }

kernels::AdamwSettings settings_at(const AdamW& optimizer, const Recipe& r, int64_t step) {
  kernels::AdamwSettings s = optimizer.settings();
  if (stage_at(r, step).kind == StageKind::align) s.weight_decay = 0;
  return s;
}

}  // namespace weft::train
