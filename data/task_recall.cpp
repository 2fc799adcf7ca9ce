// Tasks of recall: an example shows keys with values and asks for the value of a key.
#include "core/text.h"
#include "data/task_examples.h"

namespace weft::data {
namespace {

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

// Pairs of a key and its value, both of one token. The map from keys to values is drawn anew for
// each example. Where a key comes again, its value is wanted.
// Vocabulary: recall        keys 0 .. V/2-1, values V/2 .. V-1
//             noisy_recall  keys 0 .. V/4-1, values V/4 .. V/2-1, noise V/2 .. V-1
class Recall final : public Task {
 public:
  Recall(const TaskOptions& options, int64_t vocabulary, int64_t length)
      : noisy_(options.name == "noisy_recall"),
        noise_(options.noise),
        vocabulary_(vocabulary),
        keys_(vocabulary / (noisy_ ? 4 : 2)) {
    require(keys_ >= 1 && vocabulary >= (noisy_ ? 4 : 2), options.name, ": vocabulary ", vocabulary,
            ", expected at least ", noisy_ ? 4 : 2);
    require(length % 2 == 0 && length >= 4, options.name, ": length ", length,
            ", expected an even number of at least 4");
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    std::vector<int32_t> value(static_cast<size_t>(keys_));
    for (int32_t& v : value) v = static_cast<int32_t>(keys_ + draws.below(keys_));
    std::vector<bool> seen(static_cast<size_t>(keys_), false);
    for (size_t i = 0; i + 1 < tokens.size(); i += 2) {
      if (noisy_ && draws.uniform() < noise_) {
        for (const size_t at : {i, i + 1})
          tokens[at] = static_cast<int32_t>(vocabulary_ / 2 + draws.below((vocabulary_ + 1) / 2));
        continue;
      }
      const auto key = static_cast<size_t>(draws.below(keys_));
      tokens[i] = static_cast<int32_t>(key);
      tokens[i + 1] = value[key];
      if (seen[key]) targets[i] = value[key];
      seen[key] = true;
    }
    return 0;
  }

 private:
  bool noisy_;
  double noise_;
  int64_t vocabulary_, keys_;
};

// The same with keys and values of 1 .. `motif` tokens. No key of an example begins another, so it
// is known where a key ends. Vocabulary: tokens of keys 0 .. V/2-1, of values V/2 .. V-1.
class FuzzyRecall final : public Task {
 public:
  FuzzyRecall(const TaskOptions& options, int64_t vocabulary, int64_t length)
      : motif_(options.motif), half_(vocabulary / 2) {
    require(vocabulary >= 4, "fuzzy_recall: vocabulary ", vocabulary, ", expected at least 4");
    require(motif_ >= 1 && length >= 4 * motif_, "fuzzy_recall: motifs of ", motif_,
            " tokens do not fit into length ", length, ", expected 1 .. ", length / 4);
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    std::vector<std::vector<int32_t>> keys, values;
    for (int64_t attempt = 0; attempt < 8 * half_; ++attempt) {
      if (static_cast<int64_t>(keys.size()) == half_) break;
      const auto key = motif(draws, 0);
      if (std::any_of(keys.begin(), keys.end(), [&](const auto& k) { return begins(k, key); }))
        continue;
      keys.push_back(key);
      values.push_back(motif(draws, half_));
    }
    std::vector<bool> seen(keys.size(), false);
    size_t at = 0;
    const auto most = static_cast<size_t>(2 * motif_);
    while (at + most <= tokens.size()) {
      const auto n = static_cast<size_t>(draws.below(static_cast<int64_t>(keys.size())));
      for (const int32_t token : keys[n]) tokens[at++] = token;
      for (const int32_t token : values[n]) {
        if (seen[n]) targets[at - 1] = token;
        tokens[at++] = token;
      }
      seen[n] = true;
    }
    for (; at < tokens.size(); ++at) tokens[at] = static_cast<int32_t>(draws.below(half_));
    return 0;
  }

 private:
  std::vector<int32_t> motif(Draws& draws, int64_t first) const {
    std::vector<int32_t> m(static_cast<size_t>(1 + draws.below(motif_)));
    for (int32_t& token : m) token = static_cast<int32_t>(first + draws.below(half_));
    return m;
  }
  static bool begins(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    const size_t both = std::min(a.size(), b.size());
    return std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(both), b.begin());
  }

  int64_t motif_, half_;
};

// One map from keys to values for all examples, training and test: nothing in the text tells it, so
// the weights must hold it. Vocabulary: keys 0 .. V/2-1, values V/2 .. V-1.
class Memorise final : public Task {
 public:
  Memorise(int64_t vocabulary, uint64_t seed) {
    const Random random(seed, stream_of("memorise map"));
    const int64_t half = vocabulary / 2;
    for (int64_t key = 0; key < half; ++key)
      values_.push_back(static_cast<int32_t>(
          half + static_cast<int64_t>(
                     random.below(static_cast<uint64_t>(half), static_cast<uint64_t>(key)))));
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const int64_t key = draws.below(static_cast<int64_t>(values_.size()));
      tokens[i] = static_cast<int32_t>(key);
      targets[i] = values_[static_cast<size_t>(key)];
    }
    return 0;
  }

 private:
  std::vector<int32_t> values_;
};

}  // namespace

bool is_recall(const std::string& name) {
  return contains(
      std::vector<std::string>{"mqar", "recall", "noisy_recall", "fuzzy_recall", "memorise"}, name);
}

TaskPtr recall_task(const TaskOptions& options, int64_t vocabulary, int64_t length, uint64_t seed) {
  if (options.name == "mqar") return std::make_unique<Mqar>(options, vocabulary, length);
  if (options.name == "fuzzy_recall")
    return std::make_unique<FuzzyRecall>(options, vocabulary, length);
  if (options.name == "memorise") return std::make_unique<Memorise>(vocabulary, seed);
  return std::make_unique<Recall>(options, vocabulary, length);
}

}  // namespace weft::data
