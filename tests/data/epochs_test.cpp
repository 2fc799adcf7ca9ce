// The order of training data over many epochs, and the place in it: what a long run sees.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/random.h"
#include "data/tasks.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

const std::vector<int64_t> kSizes = {7, 12, 33, 20, 5, 90, 15, 64, 9, 41, 28, 6};

bool same(const HostBatch& a, const HostBatch& b) {
  return a.tokens == b.tokens && a.targets == b.targets && a.cu_seqlens == b.cu_seqlens &&
         a.slices == b.slices && a.labelled == b.labelled && a.target_bytes == b.target_bytes;
}

int64_t place_of(const std::vector<int32_t>& text, const std::vector<int32_t>& part) {
  const auto at = std::search(text.begin(), text.end(), part.begin(), part.end());
  REQUIRE(at != text.end());
  return at - text.begin();
}

using Order = std::vector<int64_t>;

void check_all_differ(const std::vector<Order>& epochs) {
  for (size_t a = 0; a < epochs.size(); ++a)
    for (size_t b = a + 1; b < epochs.size(); ++b) {
      INFO("epochs " << a << " and " << b);
      CHECK(epochs[a] != epochs[b]);
    }
}

// Made anew at every call: nothing that an earlier walk left behind can help or harm it.
std::map<std::string, BatchesPtr> training_kinds() {
  const TokenDataset text = random_text(kSizes);
  const TokenPart part = text.all();
  const BatchShape shape{.rows = 3, .length = 16},
      second{.rows = 2, .length = 16, .rank = 1, .world = 2};
  return {{"windows", training_windows(part, shape, 3)},
          {"windows, second share", training_windows(part, second, 3)},
          {"packed", training_packed(part, shape, 3)},
          {"packed, second share", training_packed(part, second, 3)},
          {"a task", training_task({.name = "mqar"}, shape, 3)},
          {"a task's examples again", training_task({.name = "mqar", .examples = 7}, shape, 3)}};
}

}  // namespace

TEST_CASE("epochs: each window comes once an epoch, whatever the rows of a batch") {
  const TokenPart part = random_text({1000}).all();
  const std::vector<int32_t> text = part.tokens(0, part.size());
  for (const int64_t rows : {1, 4, 7}) {
    INFO(rows << " rows");
    const auto batches = training_windows(part, {.rows = rows, .length = 10}, 7);
    const int64_t windows = 99, epochs = 5;  // (1000 - 1 - 9) / 10
    Order begins;
    for (int64_t step = 0; step * rows < windows * epochs; ++step) {
      const HostBatch batch = made(*batches, step);
      for (int64_t row = 0; row < rows; ++row) {
        const auto from = batch.tokens.begin() + row * 10;
        begins.push_back(place_of(text, {from, from + 10}));
      }
    }
    std::vector<Order> seen;
    for (int64_t epoch = 0; epoch < epochs; ++epoch) {
      INFO("epoch " << epoch);
      Order order(begins.begin() + epoch * windows, begins.begin() + (epoch + 1) * windows);
      Order sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (size_t i = 1; i < sorted.size(); ++i) CHECK(sorted[i] - sorted[i - 1] == 10);
      CHECK(sorted.front() < 10);
      for (int64_t& at : order) at -= sorted.front();  // without the shift of its grid
      CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
      seen.push_back(order);
    }
    check_all_differ(seen);
  }
}

TEST_CASE("epochs: each document comes once an epoch, whole, and in ever another order") {
  const TokenPart part = random_text(kSizes).all();
  const std::vector<int32_t> text = part.tokens(0, part.size());
  const int64_t size = 50;
  const auto batches = training_packed(part, {.rows = 1, .length = size}, 11);
  const int64_t epochs = 7, all = part.size();
  std::vector<int32_t> stream;
  for (int64_t step = 0; step * size < epochs * all; ++step) {
    const HostBatch batch = made(*batches, step);
    stream.insert(stream.end(), batch.tokens.begin(), batch.tokens.end());
  }
  std::vector<Order> seen;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    INFO("epoch " << epoch);
    Order order;
    for (int64_t at = epoch * all; at < (epoch + 1) * all;) {
      // Five tokens tell which document begins here: the shortest has as many.
      const auto from = stream.begin() + at;
      const int64_t begin = place_of(text, {from, from + 5});
      const auto border = std::find(part.borders().begin(), part.borders().end(), begin);
      REQUIRE(border != part.borders().end());
      const int64_t n = *(border + 1) - begin;
      CHECK(std::equal(from, from + n, text.begin() + begin));
      order.push_back(border - part.borders().begin());
      at += n;
    }
    CHECK(std::set<int64_t>(order.begin(), order.end()).size() == kSizes.size());
    CHECK(order.size() == kSizes.size());
    seen.push_back(order);
  }
  check_all_differ(seen);
}

TEST_CASE("epochs: a task's examples come once an epoch each, in ever another order") {
  const int64_t examples = 12;
  const auto batches =
      training_task({.name = "mqar", .examples = examples}, {.rows = 1, .length = 16}, 3);
  std::map<std::vector<int32_t>, int64_t> numbers;
  std::vector<Order> seen;
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    INFO("epoch " << epoch);
    Order order;
    for (int64_t i = 0; i < examples; ++i) {
      const HostBatch batch = made(*batches, epoch * examples + i);
      order.push_back(
          numbers.try_emplace(batch.tokens, static_cast<int64_t>(numbers.size())).first->second);
    }
    CHECK(std::set<int64_t>(order.begin(), order.end()).size() == static_cast<size_t>(examples));
    CHECK(static_cast<int64_t>(numbers.size()) == examples);
    seen.push_back(order);
  }
  check_all_differ(seen);
}

TEST_CASE("epochs: a fresh source at any place agrees with one that walked there") {
  const auto walked = training_kinds();
  constexpr int64_t kSteps = 60;  // some eight epochs
  for (const auto& [name, batches] : walked) {
    INFO(name);
    BatchSource source(batches, 0);
    std::vector<HostBatch> all(kSteps);
    std::vector<std::map<std::string, int64_t>> places;
    for (HostBatch& batch : all) {
      places.push_back(source.state());
      source.next(batch);
    }
    for (const int64_t step : {0, 1, 7, 8, 15, 16, 17, 23, 31, 32, 40, 47, 58}) {
      INFO("step " << step);
      const auto at = static_cast<size_t>(step);
      BatchSource fresh(training_kinds().at(name), 0);
      fresh.restore(places[at]);
      CHECK(fresh.step() == step);
      HostBatch batch;
      fresh.next(batch);
      CHECK(same(batch, all[at]));
      fresh.next(batch);
      CHECK(same(batch, all[at + 1]));
    }
    // And one that walked far, and then goes back.
    for (const int64_t step : {59, 3, 30, 2, 44, 0}) {
      INFO("back at step " << step);
      CHECK(same(made(*batches, step), all[static_cast<size_t>(step)]));
    }
  }
}
