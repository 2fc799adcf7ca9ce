// Small models, trained as the lesson on hybrids is made: what each pattern learns to recall.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft::train {

// What came of one model. The same steps give the same numbers on any number of threads.
struct Recalled {
  std::string name;
  int64_t parameters = 0, bytes = 0;  // bytes: what a long generation keeps
  std::vector<double> step, right;    // the part of held-out answers that are right, as it learned
  double last = 0;                    // at the end, over all kinds of examples
  std::vector<std::pair<int64_t, double>> by_pairs;
};

// Trains each pattern for `steps` steps, and shows on standard error how far it is.
std::vector<Recalled> trained_recall(int64_t steps);
// The same for the page.
std::string recall_section();

}  // namespace weft::train
