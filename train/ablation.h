// What the ways of a hybrid are worth, and what a model recalls. A converted model may leave all
// of the work to its softmax layers; its loss without one of the ways shows it (arXiv:2510.05901).
#pragma once

#include <string>
#include <vector>

#include "train/evaluate.h"

namespace weft::train {

// -1 where there is no such number.
struct Recall {
  double pairs = -1;  // accuracy of multi-query recall (the task mqar) over the vocabulary
  double again = -1;  // accuracy on held-out text that the row held once before
  double first = -1;  // on the same text where it stood first
};

struct Ablations {
  double loss = -1, teacher_loss = -1;               // held-out, nats a token
  double without_softmax = -1, without_linear = -1;  // of a model that has both ways
  Recall recall, teacher_recall;

  // As metrics.jsonl has them, and in a few lines.
  std::vector<std::pair<std::string, double>> numbers() const;
  std::string text() const;
};

// `teacher` may be absent. At most `batches` batches (0: all). `model` is as it was afterwards.
Ablations ablations(layers::Model& model, const layers::Model* teacher, data::BatchSource& held_out,
                    int64_t batches, Device device);

}  // namespace weft::train
