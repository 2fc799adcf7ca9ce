#include "data/tasks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "core/random.h"
#include "core/text.h"
#include "data/permutation.h"

namespace weft::data {
namespace {

// The random numbers of one example: its own stretch of the counter.
class Draws {
 public:
  Draws(const Random& random, int64_t example)
      : random_(random), at_(static_cast<uint64_t>(example) << 24) {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_.below(static_cast<uint64_t>(n), at_++));
  }
  double uniform() { return random_.uniform(at_++); }

  // `count` different numbers of 0 .. n-1, every choice as likely (Floyd), in random order.
  std::vector<int64_t> choice(int64_t n, int64_t count) {
    std::vector<int64_t> chosen;
    for (int64_t last = n - count; last < n; ++last) {
      const int64_t x = below(last + 1);
      const bool taken = std::find(chosen.begin(), chosen.end(), x) != chosen.end();
      chosen.push_back(taken ? last : x);
    }
    for (size_t i = chosen.size(); i > 1; --i)
      std::swap(chosen[i - 1], chosen[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    return chosen;
  }

  // `count` different numbers of 0 .. weights-1, drawn one after the other by weight: that is the
  // order of -log(u) / weight, smallest first (Efraimidis and Spirakis, 2006).
  std::vector<int64_t> weighted_choice(std::span<const double> weights, int64_t count) {
    std::vector<std::pair<double, int64_t>> keys;
    for (size_t i = 0; i < weights.size(); ++i)
      keys.push_back({-std::log1p(-uniform()) / weights[i], static_cast<int64_t>(i)});
    std::partial_sort(keys.begin(), keys.begin() + count, keys.end());
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < count; ++i) chosen.push_back(keys[static_cast<size_t>(i)].second);
    return chosen;
  }

 private:
  const Random& random_;
  uint64_t at_;
};

// Writes an example into rows of T tokens and T targets (all kIgnored); returns its slice.
class Task {
 public:
  virtual ~Task() = default;
  virtual int64_t make(int64_t example, Draws draws, std::span<int32_t> tokens,
                       std::span<int32_t> targets) const = 0;
};

class Mqar final : public Task {
 public:
  Mqar(const TaskOptions& options, int64_t vocabulary, int64_t length)
      : options_(options), vocabulary_(vocabulary) {
    require(length % 2 == 0, "mqar: length ", length, " is odd, expected pairs of tokens");
    require(!options.pairs.empty(), "mqar: no number of pairs is given");
    for (int64_t g = 1; g <= length / 2; ++g)
      weights_.push_back(std::pow(static_cast<double>(g), options.power - 1));
    for (const int64_t pairs : options.pairs) {
      require(pairs >= 1 && 4 * pairs <= length, "mqar: ", pairs, " pairs do not fit into length ",
              length, ", expected 1 .. ", length / 4);
      require(vocabulary / 2 - 1 >= pairs, "mqar: a vocabulary of ", vocabulary,
              " has too few keys for ", pairs, " pairs, expected at least ", 2 * pairs + 2);
    }
  }

  int64_t make(int64_t example, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const int64_t pairs = options_.pairs[static_cast<size_t>(example) % options_.pairs.size()];
    const int64_t half = vocabulary_ / 2, length = static_cast<int64_t>(tokens.size());
    const auto keys = draws.choice(half - 1, pairs);              // 1 .. V/2-1
    const auto values = draws.choice(vocabulary_ - half, pairs);  // V/2 .. V-1
    const auto slots = draws.weighted_choice(
        std::span(weights_).first(static_cast<size_t>(length / 2 - pairs)), pairs);

    std::vector<bool> taken(tokens.size(), false);
    const auto put = [&](int64_t at, int64_t token) {
      tokens[static_cast<size_t>(at)] = static_cast<int32_t>(token);
      taken[static_cast<size_t>(at)] = true;
    };
    for (int64_t i = 0; i < pairs; ++i) {
      const auto n = static_cast<size_t>(i);
      const int64_t query = 2 * pairs + 2 * slots[n];
      put(2 * i, 1 + keys[n]);
      put(2 * i + 1, half + values[n]);
      put(query, 1 + keys[n]);
      targets[static_cast<size_t>(query)] = static_cast<int32_t>(half + values[n]);
    }
    for (size_t i = 0; i < tokens.size(); ++i)
      if (!taken[i])
        tokens[i] = options_.random_filler ? static_cast<int32_t>(draws.below(vocabulary_)) : 0;
    return pairs;
  }

 private:
  TaskOptions options_;
  int64_t vocabulary_;
  std::vector<double> weights_;  // of the places a query may take, from the first on
};

// Vocabulary: data 0 .. V-3, blank V-2, marker V-1.
class SelectiveCopy final : public Task {
 public:
  SelectiveCopy(const TaskOptions& options, int64_t vocabulary, int64_t length)
      : marks_(options.marks), vocabulary_(vocabulary) {
    require(vocabulary >= 3, "selective_copy: vocabulary ", vocabulary, ", expected at least 3");
    require(marks_ >= 1 && length >= 2 * marks_ + 1, "selective_copy: ", marks_,
            " marks do not fit into length ", length, ", expected 1 .. ", (length - 1) / 2);
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const auto length = static_cast<int64_t>(tokens.size());
    std::fill(tokens.begin(), tokens.end(), static_cast<int32_t>(vocabulary_ - 2));
    const int64_t marker = length - marks_ - 1;
    auto places = draws.choice(marker, marks_);
    std::sort(places.begin(), places.end());
    for (int64_t i = 0; i < marks_; ++i) {
      const auto token = static_cast<int32_t>(draws.below(vocabulary_ - 2));
      tokens[static_cast<size_t>(places[static_cast<size_t>(i)])] = token;
      targets[static_cast<size_t>(marker + 1 + i)] = token;
    }
    tokens[static_cast<size_t>(marker)] = static_cast<int32_t>(vocabulary_ - 1);
    return marks_;
  }

 private:
  int64_t marks_, vocabulary_;
};

// Vocabulary: 0 .. V-2, marker V-1.
class Induction final : public Task {
 public:
  Induction(int64_t vocabulary, int64_t length) : vocabulary_(vocabulary) {
    require(vocabulary >= 2, "induction: vocabulary ", vocabulary, ", expected at least 2");
    require(length > 3, "induction: length ", length, ", expected at least 4");
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    for (int32_t& token : tokens) token = static_cast<int32_t>(draws.below(vocabulary_ - 1));
    const auto at = static_cast<size_t>(draws.below(static_cast<int64_t>(tokens.size()) - 3));
    tokens[at] = tokens.back() = static_cast<int32_t>(vocabulary_ - 1);
    targets.back() = tokens[at + 1];
    return 0;
  }

 private:
  int64_t vocabulary_;
};

class TaskBatches final : public Batches {
 public:
  // examples > 0 and no end: those again and again; with an end: those once.
  TaskBatches(const TaskOptions& options, const BatchShape& shape, uint64_t seed, bool test,
              int64_t examples)
      : Batches(shape, false),
        vocabulary_(options.vocabulary != 0 ? options.vocabulary
                                            : (options.name == "mqar" ? 8192 : 16)),
        seed_(seed),
        examples_(examples),
        test_(test),
        random_(seed, stream_of(options.name + (test ? " test" : " training"))) {
    require(shape.rows > 0 && shape.rank >= 0 && shape.rank < shape.world, "a batch of ",
            shape.rows, " rows, share ", shape.rank, " of ", shape.world,
            ": expected positive numbers and a share that is there");
    const auto names = task_names();
    if (!contains(names, options.name)) fail(unknown_name("task", options.name, names));
    if (options.name == "mqar")
      task_ = std::make_unique<Mqar>(options, vocabulary_, shape.length);
    else if (options.name == "selective_copy")
      task_ = std::make_unique<SelectiveCopy>(options, vocabulary_, shape.length);
    else
      task_ = std::make_unique<Induction>(vocabulary_, shape.length);
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
  std::unique_ptr<Task> task_;
};

}  // namespace

std::vector<std::string> task_names() { return {"mqar", "selective_copy", "induction"}; }

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
