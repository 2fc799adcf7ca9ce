// Loss on data that the model has not learned from.
#pragma once

#include <functional>

#include "core/ranks.h"
#include "layers/routes.h"
#include "train/source.h"

namespace weft::train {

// What an evaluation of a mixture says of one of its domains.
struct DomainEvaluation {
  double loss = 0;                     // nats a labelled token
  double bits_per_byte = -1;           // -1 where the tokens stand for no bytes
  double tokens = 0;                   // labelled tokens seen
  double full_keys = 0;                // that a token would see of all of its past, on average
  std::vector<layers::Routes> routes;  // of one rank alone; with several ranks empty
};

struct Evaluation {
  double loss = 0;            // nats a labelled token
  double perplexity = 0;      // e^loss
  double bits_per_byte = -1;  // text only, else -1
  double accuracy = -1;       // tasks only: part of labelled tokens that the likeliest guess hits
  double tokens = 0;          // labelled tokens seen
  bool whole = true;          // false where `stop` ended it: the numbers mean nothing then
  std::map<int64_t, double> slices;             // tasks: accuracy by kind of example
  std::map<int64_t, DomainEvaluation> domains;  // a mixture's, by their numbers
  // "held-out loss 1.31, 1.89 bits per byte, perplexity 3.7"
  std::string text() const;
};

// Several ranks share the batches; the numbers, added in the batches' order, are those of one rank.
// At most `batches` batches (0: all there are), from the first, always the same. Between two of
// them stop() may end it. Throws Error where no token of them can be predicted.
Evaluation evaluate(const layers::Model& model, data::BatchSource& held_out, int64_t batches,
                    Device device, const std::function<bool()>& stop = nullptr,
                    Ranks* ranks = nullptr);

}  // namespace weft::train
