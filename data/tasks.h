// Synthetic tasks, whose right answers are known. Each example is a function of (seed, number), so
// that the training stream never ends and the test stream never changes; the two share no example
// but by chance. Only the answers have targets, so that accuracy is counted there.
//   mqar            multi-query associative recall, as Zoology makes it (arXiv:2312.04927): P pairs
//                   of key and value, then each key once more, early rather than late (power law);
//                   the target at a key is its value. Slice: P.
//   selective_copy  data tokens at random places among blanks; after a marker, they are wanted in
//                   order (arXiv:2312.00752). Slice: their number.
//   induction       a marker at a random place and once more at the end; wanted is what followed it
//                   the first time (arXiv:2212.14052). Slice: 0.
//   recall          pairs of key and value; where a key comes again, its value is wanted. This and
//                   the next three follow MAD (arXiv:2403.17844). Slice: 0.
//   noisy_recall    the same, with some pairs replaced by noise. Slice: 0.
//   fuzzy_recall    the same, with keys and values of several tokens. Slice: 0.
//   memorise        the values of keys that no text tells: the weights must hold them. Slice: 0.
//   copy, reverse   tokens, a marker, and then the tokens are wanted in their order, or from the
//                   last to the first. Slice: their number.
//   parity          bits; wanted at each is the parity so far. Slice: 0.
//   s5              permutations of five things; wanted is what they make together so far
//                   (arXiv:2404.08819). Slice: 0.
//   stack           tokens are put on a stack; a marker takes the last off, and that is wanted.
//                   Slice: 0.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/batches.h"

namespace weft::data {

struct TaskOptions {
  std::string name = "mqar";
  int64_t vocabulary = 0;            // 0: standard_vocabulary()
  std::vector<int64_t> pairs = {4};  // mqar: P of example i is pairs[i % size]
  bool random_filler = true;         // mqar: other places hold random tokens (false: 0), as Zoology
  double power = 0.01;               // mqar: place g of a query has weight power * g^(power-1)
  int64_t marks = 16;                // selective_copy, copy, reverse: data tokens
  double noise = 0.2;                // noisy_recall: part of the pairs that are noise
  int64_t motif = 3;                 // fuzzy_recall: most tokens of a key or a value
  int64_t examples = 0;              // training: that many examples again and again, shuffled anew
                                     // each time; 0: ever new ones
};

std::vector<std::string> task_names();
// Of a task that is told no other.
int64_t standard_vocabulary(const std::string& task);

// Throw Error for an unknown name, or sizes that do not fit: mqar 4P <= T; T even in mqar, recall
// and noisy_recall; selective_copy, copy and reverse T > 2 marks; induction T > 3; fuzzy_recall
// T >= 4 motif; vocabularies that have too few tokens.
BatchesPtr training_task(const TaskOptions& options, const BatchShape& shape, uint64_t seed);
BatchesPtr test_task(const TaskOptions& options, const BatchShape& shape, uint64_t seed,
                     int64_t examples);

}  // namespace weft::data
