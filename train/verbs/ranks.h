// A verb on several ranks: the flags --ranks and --gpus, the environment of a starter, and the
// processes that the program starts itself.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/ranks.h"

namespace weft::train {

struct RankArguments {
  int64_t ranks = 0;  // 0: the environment's, else one
  std::string gpus;   // a number or "all": as many ranks, each on a GPU of its own
};

struct RankedVerb {
  // In the process that starts the ranks, before: throws Error for what they would all meet.
  std::function<void(int ranks)> check;
  // On each rank. `device` stands before the recipe's; empty: the recipe's.
  std::function<int(std::shared_ptr<Ranks> ranks, const std::string& device)> run;
};

// Runs the verb on the ranks that the flags or the environment name, and returns the exit status of
// all. One rank prints: what the others met is told by it.
int on_ranks(const RankArguments& arguments, const std::string& device, const RankedVerb& verb);

// The threads of each of `count` ranks that one machine starts: its processors shared out, unless
// OMP_NUM_THREADS says otherwise.
int threads_of_rank(int count);

// Starts `count` processes of this command line and waits for them.
int start_ranks(int count);

}  // namespace weft::train
