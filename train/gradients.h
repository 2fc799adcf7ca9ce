// The gradients of a step, summed in one order whatever the number of ranks. A step has S shards
// (train.accumulate), each with a gradient of its own from its own micro-batch; they are added
// along one binary tree over the shards' numbers, ((0+1)+(2+3))+((4+5)+...). Rank r of n has the
// shards from r S/n on, adds what of the tree lies within them, and sends each other rank that
// one's slice of what is left; the owner of a slice adds the rest of the tree.
#pragma once

#include <vector>

#include "train/slices.h"

namespace weft::train {

// The sum of the shards from `begin` on, a node of the tree.
struct TreeNode {
  int64_t begin = 0, count = 0;
  bool operator==(const TreeNode&) const = default;
};
// Does the tree add these two neighbours before either meets another?
bool joins(const TreeNode& left, const TreeNode& right);
// What is left of the shards [begin, begin + count) once all within them is added: one node where
// begin and count are powers of two, else a few. `most` is the most that are held on the way.
std::vector<TreeNode> nodes_within(int64_t begin, int64_t count, size_t* most = nullptr);

// A rank makes room for so many numbers of other ranks at a time. In pieces of 64 MiB two GPUs send
// 1.3 times the bytes a second that they send in pieces of 16 MiB.
inline constexpr int64_t kArriving = int64_t{1} << 24;

class Gradients {
 public:
  // Gives each leaf's gradient a place. `shards` are those of all ranks; on a meta device some of
  // them may be walked.
  Gradients(const std::vector<layers::Parameter>& parameters, const Slices& slices, Ranks& ranks,
            int64_t shards);
  ~Gradients();
  Gradients(const Gradients&) = delete;
  Gradients& operator=(const Gradients&) = delete;

  void begin_step();
  // What backward() adds between the two is one shard's.
  void begin_shard();
  void end_shard();
  // The leaves' gradients are those of the step: all of them for one rank, else this rank's slice.
  void end_step();

 private:
  struct Held {
    TreeNode node;
    Tensor sum;
  };
  static void join_last(std::vector<Held>& list);
  static Tensor joined(const std::vector<Held>& list);
  void bind(size_t block);
  void join_ranks();
  Tensor piece(const Tensor& block, int rank, int64_t chunk) const;

  std::vector<layers::Parameter> parameters_;
  Ranks& ranks_;
  int64_t per_rank_;
  Layout layout_;
  std::vector<int64_t> borders_;               // of slices, in a block
  std::vector<std::vector<TreeNode>> nodes_;   // by rank
  std::vector<Tensor> blocks_;                 // where shards and their sums lie, a stack
  std::vector<std::vector<Tensor>> arrivals_;  // by rank and node
  int64_t chunk_ = 0, chunks_ = 0;
  std::vector<Held> held_;
  int64_t next_ = 0;
  size_t bound_ = 0;
};

}  // namespace weft::train
