// Batches for training and evaluation.
//   Batches      what the batch of a step is: a function of the step alone, so that the place in
//                the data is one number and any step can be made again
//   BatchSource  hands them out in order, made in the background; saves and restores its place
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "data/dataset.h"

namespace weft::data {

inline constexpr int32_t kIgnored = -100;  // a target that counts for nothing

struct BatchShape {
  int64_t rows = 1;             // B, of this rank
  int64_t length = 1;           // T
  int64_t rank = 0, world = 1;  // of `world` shares of rows * world rows, this is number `rank`
};

// A batch in plain memory.
struct HostBatch {
  std::vector<int32_t> tokens, targets;  // [B, T], or [1, B*T] with documents packed
  std::vector<int32_t> cu_seqlens;       // [N+1] borders of packed documents; empty if not packed
  std::vector<int64_t> slices;           // [B] what kind of example each row is; empty for text
  int64_t domain = -1;                   // of all its documents; -1: not known
  int64_t labelled = 0;                  // targets that are not kIgnored
  int64_t target_bytes = 0;              // bytes of text that they stand for; 0 for tasks
};

struct Batch {
  Tensor tokens, targets;  // i32 [B, T], or [1, B*T] with documents packed; targets[t] follows t
  Tensor cu_seqlens;       // i32 [N+1] on the CPU; absent if not packed
  std::vector<int64_t> slices;
  int64_t domain = -1;
  int64_t labelled = 0, target_bytes = 0;
};

class Batches {
 public:
  virtual ~Batches() = default;

  // May be called from any thread, for any step >= 0.
  virtual void make(int64_t step, HostBatch& batch) const = 0;
  // How many steps there are; -1 for training, which never ends.
  virtual int64_t count() const = 0;
  virtual int64_t vocabulary() const = 0;
  // Steps of one pass over the data, as a real number; 0 where there is no such thing.
  virtual double epoch_steps() const { return 0; }
  const BatchShape& shape() const { return shape_; }
  bool packed() const { return packed_; }
  // Tells orders apart: of the data, its seed and the batch's shape, but not of the rank.
  uint64_t fingerprint() const { return fingerprint_; }

 protected:
  Batches(const BatchShape& shape, bool packed) : shape_(shape), packed_(packed) {}
  BatchShape shape_;
  bool packed_;
  uint64_t fingerprint_ = 0;
};

using BatchesPtr = std::shared_ptr<const Batches>;

// Training: windows of T+1 tokens, in an order that the seed shuffles anew each epoch, from a grid
// that it shifts anew. Throws Error if the part is shorter than one window.
BatchesPtr training_windows(const TokenPart& part, const BatchShape& shape, uint64_t seed);
// Is any token followed by another of its document? Else nothing can be learned from packed
// documents.
bool has_targets(const TokenPart& part);
// Training: whole documents in shuffled order, one behind the other, cut to B*T tokens. A
// document's last token has no target; throws Error where no document has two tokens. A document
// longer than T is cut into pieces of T, each of which begins anew; the token before a cut has its
// target.
BatchesPtr training_packed(const TokenPart& part, const BatchShape& shape, uint64_t seed);
// Evaluation: the part from its first to its last token, each predicted once (but the first;
// packed: but each document's first). The last batch is filled with tokens that have no target.
BatchesPtr held_out_windows(const TokenPart& part, const BatchShape& shape);
BatchesPtr held_out_packed(const TokenPart& part, const BatchShape& shape);

// Evaluation of a mixture: the batches of its domains by turns, each of one domain, until all are
// done.
BatchesPtr by_turns(std::vector<BatchesPtr> domains);

// The tensors of a batch. The room for cu_seqlens is that of the most documents there could be, so
// that memory does not depend on the data.
Batch to_tensors(const HostBatch& batch, const Batches& batches, Device device = kCpu);
// Tensors of the same sizes with nothing in them, for planning on the meta device.
Batch blank_batch(const Batches& batches, Device device);

class BatchSource {
 public:
  // Up to `prefetch` batches are made ahead by a thread; 0 makes them when asked for.
  explicit BatchSource(BatchesPtr batches, int prefetch = 2);
  ~BatchSource();
  BatchSource(const BatchSource&) = delete;
  BatchSource& operator=(const BatchSource&) = delete;

  // The next batch. What failed in the background is thrown here. After the last batch of an
  // evaluation it begins again.
  Batch next(Device device = kCpu);
  void next(HostBatch& batch);

  const Batches& batches() const;
  int64_t step() const;  // of the next batch
  void rewind();         // to step 0

  // The place in the data, exactly. Throws Error if the state is of other data, seed or batch
  // shape.
  std::map<std::string, int64_t> state() const;
  void restore(const std::map<std::string, int64_t>& state);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::data
