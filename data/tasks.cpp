#include "data/tasks.h"

#include "core/hash.h"
#include "core/text.h"
#include "data/permutation.h"
#include "data/task_examples.h"

namespace weft::data {
namespace {

class TaskBatches final : public Batches {
 public:
  // examples > 0 and no end: those again and again; with an end: those once.
  TaskBatches(const TaskOptions& options, const BatchShape& shape, uint64_t seed, bool test,
              int64_t examples)
      : Batches(shape, false),
        vocabulary_(options.vocabulary != 0 ? options.vocabulary
                                            : standard_vocabulary(options.name)),
        seed_(seed),
        examples_(examples),
        test_(test),
        random_(seed, stream_of(options.name + (test ? " test" : " training"))) {
    require(shape.rows > 0 && shape.rank >= 0 && shape.rank < shape.world, "a batch of ",
            shape.rows, " rows, share ", shape.rank, " of ", shape.world,
            ": expected positive numbers and a share that is there");
    const auto names = task_names();
    if (!contains(names, options.name)) fail(unknown_name("task", options.name, names));
    require(vocabulary_ >= 2, options.name, ": vocabulary ", vocabulary_, ", expected at least 2");
    task_ = is_recall(options.name) ? recall_task(options, vocabulary_, shape.length, seed)
                                    : sequence_task(options, vocabulary_, shape.length);
    Hash64 hash;
    hash.update(concat(options.name, test ? " test" : "", options.power, options.random_filler));
    std::vector<int64_t> numbers = {static_cast<int64_t>(seed),
                                    vocabulary_,
                                    options.marks,
                                    examples,
                                    shape.rows,
                                    shape.length,
                                    shape.world};
    numbers.insert(numbers.end(), options.pairs.begin(), options.pairs.end());
    hash.update(numbers.data(), numbers.size() * sizeof(int64_t));
    if (options.name == "noisy_recall") hash.update(concat(options.noise));
    if (options.name == "fuzzy_recall") hash.update(concat(options.motif));
    fingerprint_ = hash.digest();
  }

  int64_t vocabulary() const override { return vocabulary_; }
  int64_t count() const override {
    const int64_t step = shape_.rows * shape_.world;
    return test_ ? (examples_ + step - 1) / step : -1;
  }
  double epoch_steps() const override {
    return static_cast<double>(examples_) / static_cast<double>(shape_.rows * shape_.world);
  }

  void make(int64_t step, HostBatch& batch) const override {
    const auto T = static_cast<size_t>(shape_.length), rows = static_cast<size_t>(shape_.rows);
    batch.tokens.assign(rows * T, 0);
    batch.targets.assign(rows * T, kIgnored);
    batch.cu_seqlens.clear();
    batch.slices.assign(rows, 0);
    for (size_t row = 0; row < rows; ++row) {
      int64_t example =
          (step * shape_.world + shape_.rank) * shape_.rows + static_cast<int64_t>(row);
      if (test_ && example >= examples_) break;
      if (!test_ && examples_ > 0) {
        const auto epoch = static_cast<uint64_t>(example / examples_);
        example = Permutation(examples_, seed_, stream_of("examples") + epoch)(example % examples_);
      }
      batch.slices[row] =
          task_->make(example, Draws(random_, example), std::span(batch.tokens).subspan(row * T, T),
                      std::span(batch.targets).subspan(row * T, T));
    }
    batch.labelled = static_cast<int64_t>(batch.targets.size()) -
                     std::count(batch.targets.begin(), batch.targets.end(), kIgnored);
    batch.target_bytes = 0;
  }

 private:
  int64_t vocabulary_;
  uint64_t seed_;
  int64_t examples_;
  bool test_;
  Random random_;
  TaskPtr task_;
};

}  // namespace

std::vector<std::string> task_names() {
  return {"mqar",     "selective_copy", "induction", "recall", "noisy_recall", "fuzzy_recall",
          "memorise", "copy",           "reverse",   "parity", "s5",           "stack"};
}

int64_t standard_vocabulary(const std::string& task) {
  if (task == "mqar") return 8192;
  if (task == "memorise") return 256;
  if (task == "s5") return 120;
  if (task == "noisy_recall") return 32;
  return task == "parity" ? 2 : 16;
}

BatchesPtr training_task(const TaskOptions& options, const BatchShape& shape, uint64_t seed) {
  require(options.examples >= 0, options.name, ": ", options.examples,
          " examples, expected 0 for ever new ones, or more");
  return std::make_shared<TaskBatches>(options, shape, seed, false, options.examples);
}

BatchesPtr test_task(const TaskOptions& options, const BatchShape& shape, uint64_t seed,
                     int64_t examples) {
  require(examples > 0, options.name, ": ", examples, " test examples, expected 1 or more");
  return std::make_shared<TaskBatches>(options, shape, seed, true, examples);
}

}  // namespace weft::data
