// Tasks on whole sequences: copying, order, and states that must be carried along.
#include <array>

#include "core/text.h"
#include "data/task_examples.h"

namespace weft::data {
namespace {

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

// `marks` tokens, a marker, and blanks where the tokens are wanted: as they were, or from the last
// to the first. Blanks stand before the tokens too.
// Vocabulary: data 0 .. V-3, blank V-2, marker V-1.
class Copy final : public Task {
 public:
  Copy(const TaskOptions& options, int64_t vocabulary, int64_t length)
      : reverse_(options.name == "reverse"), marks_(options.marks), vocabulary_(vocabulary) {
    require(vocabulary >= 3, options.name, ": vocabulary ", vocabulary, ", expected at least 3");
    require(marks_ >= 1 && length >= 2 * marks_ + 1, options.name, ": ", marks_,
            " marks do not fit into length ", length, ", expected 1 .. ", (length - 1) / 2);
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    std::fill(tokens.begin(), tokens.end(), static_cast<int32_t>(vocabulary_ - 2));
    const size_t marks = static_cast<size_t>(marks_), marker = tokens.size() - marks - 1;
    tokens[marker] = static_cast<int32_t>(vocabulary_ - 1);
    for (size_t i = 0; i < marks; ++i) {
      const auto token = static_cast<int32_t>(draws.below(vocabulary_ - 2));
      tokens[marker - marks + i] = token;
      targets[marker + 1 + (reverse_ ? marks - 1 - i : i)] = token;
    }
    return marks_;
  }

 private:
  bool reverse_;
  int64_t marks_, vocabulary_;
};

// Bits; wanted at each is the parity of all so far. Vocabulary: 0 and 1.
class Parity final : public Task {
 public:
  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    int32_t parity = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(draws.below(2));
      targets[i] = parity ^= tokens[i];
    }
    return 0;
  }
};

// Permutations of five things (arXiv:2404.08819); wanted at each is what all so far, applied one
// after the other, make together. Token n is the n-th permutation in the order of the alphabet.
class Permutations final : public Task {
 public:
  explicit Permutations(int64_t vocabulary) {
    require(vocabulary >= kOrders, "s5: vocabulary ", vocabulary, ", expected at least ", kOrders,
            ", one token a permutation");
    Order order = {0, 1, 2, 3, 4};
    do {
      orders_.push_back(order);
    } while (std::next_permutation(order.begin(), order.end()));
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    Order all = orders_.front();
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(draws.below(kOrders));
      const Order& next = orders_[static_cast<size_t>(tokens[i])];
      Order both;
      for (size_t k = 0; k < all.size(); ++k) both[k] = next[all[k]];
      all = both;
      targets[i] = static_cast<int32_t>(std::lower_bound(orders_.begin(), orders_.end(), all) -
                                        orders_.begin());
    }
    return 0;
  }

 private:
  static constexpr int64_t kOrders = 120;
  using Order = std::array<uint8_t, 5>;
  std::vector<Order> orders_;
};

// Tokens are put on a stack; the marker takes the last one off, and that is wanted there.
// Vocabulary: data 0 .. V-2, marker V-1.
class Stack final : public Task {
 public:
  Stack(int64_t vocabulary, int64_t length) : vocabulary_(vocabulary) {
    require(length >= 2, "stack: length ", length, ", expected at least 2");
  }

  int64_t make(int64_t, Draws draws, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    std::vector<int32_t> stack;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool take = !stack.empty() && (i == 1 || draws.below(2) == 0);
      if (take) {
        tokens[i] = static_cast<int32_t>(vocabulary_ - 1);
        targets[i] = stack.back();
        stack.pop_back();
      } else {
        stack.push_back(tokens[i] = static_cast<int32_t>(draws.below(vocabulary_ - 1)));
      }
    }
    return 0;
  }

 private:
  int64_t vocabulary_;
};

}  // namespace

TaskPtr sequence_task(const TaskOptions& options, int64_t vocabulary, int64_t length) {
  const std::string& name = options.name;
  if (name == "selective_copy") return std::make_unique<SelectiveCopy>(options, vocabulary, length);
  if (name == "induction") return std::make_unique<Induction>(vocabulary, length);
  if (name == "parity") return std::make_unique<Parity>();
  if (name == "s5") return std::make_unique<Permutations>(vocabulary);
  if (name == "stack") return std::make_unique<Stack>(vocabulary, length);
  return std::make_unique<Copy>(options, vocabulary, length);
}

}  // namespace weft::data
