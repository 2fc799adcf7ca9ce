#include "data/tasks.h"

#include <map>
#include <set>

#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

TEST_CASE("tasks: in mqar each target is the value of the key at its place") {
  const int64_t T = 128, V = 8192;
  for (const bool random_filler : {true, false}) {
    const auto batches =
        training_task({.name = "mqar", .pairs = {16, 32, 1}, .random_filler = random_filler},
                      {.rows = 6, .length = T}, 1);
    for (int64_t step = 0; step < 20; ++step) {
      const HostBatch batch = made(*batches, step);
      for (int64_t row = 0; row < 6; ++row) {
        const int32_t* tokens = batch.tokens.data() + row * T;
        const int32_t* targets = batch.targets.data() + row * T;
        const int64_t pairs = batch.slices[static_cast<size_t>(row)];
        CHECK(pairs == std::vector<int64_t>{16, 32, 1}[static_cast<size_t>(row % 3)]);
        std::map<int32_t, int32_t> values;
        for (int64_t i = 0; i < pairs; ++i) {
          CHECK((tokens[2 * i] >= 1 && tokens[2 * i] < V / 2));
          CHECK((tokens[2 * i + 1] >= V / 2 && tokens[2 * i + 1] < V));
          values[tokens[2 * i]] = tokens[2 * i + 1];
        }
        CHECK(static_cast<int64_t>(values.size()) == pairs);  // keys differ
        std::set<int32_t> asked;
        for (int64_t i = 0; i < T; ++i) {
          if (targets[i] != kIgnored) {
            CHECK(i >= 2 * pairs);
            CHECK(i % 2 == 0);
            CHECK(targets[i] == values.at(tokens[i]));
            asked.insert(tokens[i]);
          } else if (!random_filler && i >= 2 * pairs) {
            CHECK(tokens[i] == 0);
          }
        }
        CHECK(static_cast<int64_t>(asked.size()) == pairs);  // each once
      }
    }
  }
}

TEST_CASE("tasks: mqar asks early rather than late, with the power law's weights") {
  // One query among 32 places: place g with weight (g+1)^-0.99, of which the first has 0.2436.
  const auto batches = training_task({.name = "mqar", .pairs = {1}}, {.rows = 64, .length = 66}, 5);
  double total = 0, first = 0, expected = 0, sum = 0;
  for (int g = 1; g <= 32; ++g) sum += std::pow(g, -0.99);
  expected = 1 / sum;
  for (int64_t step = 0; step < 100; ++step) {
    const HostBatch batch = made(*batches, step);
    for (int64_t row = 0; row < 64; ++row, ++total)
      first += batch.targets[static_cast<size_t>(row * 66 + 2)] != kIgnored;
  }
  CHECK(first / total == Approx(expected).margin(0.02));
}

TEST_CASE("tasks: selective_copy wants the data tokens in order") {
  const auto batches =
      training_task({.name = "selective_copy", .vocabulary = 16}, {.rows = 4, .length = 64}, 1);
  std::set<std::vector<size_t>> places;
  for (int64_t step = 0; step < 30; ++step) {
    const HostBatch batch = made(*batches, step);
    for (size_t row = 0; row < 4; ++row) {
      std::vector<int32_t> data, wanted;
      std::vector<size_t> at;
      for (size_t i = 0; i < 64; ++i) {
        const int32_t token = batch.tokens[row * 64 + i];
        CHECK((token == 15) == (i == 47));
        if (token < 14) data.push_back(token), at.push_back(i);
        if (batch.targets[row * 64 + i] != kIgnored) {
          CHECK(i >= 48);
          wanted.push_back(batch.targets[row * 64 + i]);
        }
      }
      CHECK(data == wanted);
      CHECK(wanted.size() == 16);
      places.insert(at);
    }
  }
  CHECK(places.size() > 100);
}

TEST_CASE("tasks: induction wants what followed the marker") {
  const auto batches = training_task({.name = "induction"}, {.rows = 4, .length = 32}, 1);
  for (int64_t step = 0; step < 30; ++step) {
    const HostBatch batch = made(*batches, step);
    CHECK(batch.labelled == 4);
    for (int64_t row = 0; row < 4; ++row) {
      const auto begin = batch.tokens.begin() + row * 32, end = begin + 32;
      const auto marker = std::find(begin, end, 15);
      CHECK(std::count(begin, end, 15) == 2);
      CHECK(*(end - 1) == 15);
      CHECK(batch.targets[static_cast<size_t>(row * 32 + 31)] == *(marker + 1));
    }
  }
}

TEST_CASE("tasks: examples depend on seed and number alone, and training and test differ") {
  for (const std::string& name : task_names()) {
    INFO(name);
    const TaskOptions options{.name = name};
    const BatchShape shape{.rows = 4, .length = 64};
    const auto a = made(*training_task(options, shape, 1), 3);
    CHECK(a.tokens == made(*training_task(options, shape, 1), 3).tokens);
    CHECK(a.tokens != made(*training_task(options, shape, 2), 3).tokens);
    CHECK(a.tokens != made(*training_task(options, shape, 1), 4).tokens);
    CHECK(a.tokens != made(*test_task(options, shape, 1, 100), 3).tokens);
    const auto test = test_task(options, shape, 1, 10);
    CHECK(test->count() == 3);
    CHECK(made(*test, 2).labelled == made(*test, 0).labelled / 2);
  }
}

TEST_CASE("tasks: a fixed number of examples comes again, each once an epoch") {
  const auto batches =
      training_task({.name = "induction", .examples = 12}, {.rows = 4, .length = 8}, 1);
  std::set<std::vector<int32_t>> first, second;
  for (int64_t step = 0; step < 6; ++step) {
    const HostBatch batch = made(*batches, step);
    for (int64_t row = 0; row < 4; ++row)
      (step < 3 ? first : second)
          .insert({batch.tokens.begin() + row * 8, batch.tokens.begin() + row * 8 + 8});
  }
  CHECK(first.size() == 12);
  CHECK(first == second);
}

TEST_CASE("tasks: sizes that do not fit and unknown names are told") {
  const auto make = [](const TaskOptions& options, int64_t length) {
    return message([&] { training_task(options, {.rows = 1, .length = length}, 1); });
  };
  CHECK(contains(make({.name = "mqar", .pairs = {17}}, 64), "17 pairs do not fit into length 64"));
  CHECK(contains(make({.name = "mqar"}, 65), "length 65 is odd"));
  CHECK(contains(make({.name = "mqar", .vocabulary = 8}, 64), "too few keys"));
  CHECK(contains(make({.name = "selective_copy"}, 32), "16 marks do not fit into length 32"));
  CHECK(contains(make({.name = "induction"}, 3), "expected at least 4"));
  CHECK(contains(make({.name = "mquar"}, 64), "unknown task \"mquar\"; did you mean \"mqar\"?"));
}
