#include "data/tasks.h"

#include <map>
#include <set>

#include "data/task_examples.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

TEST_CASE("tasks: no two neighbours among examples share a random number") {
  const Random random(1, stream_of("examples"));
  std::set<double> seen;
  constexpr int64_t kExamples = 8, kDraws = 3000;
  for (int64_t e = 0; e < kExamples; ++e) {
    Draws draws(random, e);
    for (int64_t i = 0; i < kDraws; ++i) seen.insert(draws.uniform());
  }
  CHECK(static_cast<int64_t>(seen.size()) == kExamples * kDraws);
}

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
    const HostBatch last = made(*test, 2);  // examples 8 and 9, and two rows of nothing
    CHECK(last.labelled > 0);
    CHECK(std::all_of(last.targets.begin() + 2 * 64, last.targets.end(),
                      [](int32_t target) { return target == kIgnored; }));
  }
}

TEST_CASE("tasks: in recall a key that comes again wants its value, and no other place does") {
  for (const std::string name : {"recall", "noisy_recall"}) {
    INFO(name);
    const int64_t V = standard_vocabulary(name), keys = name == "recall" ? V / 2 : V / 4;
    const auto batches = training_task({.name = name}, {.rows = 4, .length = 64}, 1);
    std::set<std::map<int32_t, int32_t>> maps;
    int64_t noise = 0, pairs = 0;
    for (int64_t step = 0; step < 40; ++step) {
      const HostBatch batch = made(*batches, step);
      for (size_t row = 0; row < 4; ++row) {
        std::map<int32_t, int32_t> value;
        for (size_t i = row * 64; i < (row + 1) * 64; i += 2, ++pairs) {
          const int32_t key = batch.tokens[i], shown = batch.tokens[i + 1];
          CHECK(batch.targets[i + 1] == kIgnored);
          if (key >= V / 2) {
            CHECK(name == "noisy_recall");
            CHECK((key < V && shown >= V / 2 && shown < V));
            CHECK(batch.targets[i] == kIgnored);
            ++noise;
            continue;
          }
          CHECK((key < keys && shown >= keys && shown < 2 * keys));
          CHECK(batch.targets[i] == (value.count(key) ? value[key] : kIgnored));
          if (value.count(key)) CHECK(value[key] == shown);
          value[key] = shown;
        }
        maps.insert(value);
      }
    }
    CHECK(maps.size() == 160);  // a map of its own for each example
    CHECK(double(noise) / double(pairs) == Approx(name == "recall" ? 0 : 0.2).margin(0.02));
  }
}

TEST_CASE("tasks: fuzzy_recall wants the whole value behind a whole key") {
  const int64_t T = 96;
  const auto batches = training_task({.name = "fuzzy_recall"}, {.rows = 4, .length = T}, 1);
  const auto is_key = [](int32_t token) { return token < 8; };
  std::set<size_t> lengths;
  for (int64_t step = 0; step < 20; ++step) {
    const HostBatch batch = made(*batches, step);
    CHECK(batch.labelled > 4 * 20);
    for (int64_t row = 0; row < 4; ++row) {
      const int32_t* tokens = batch.tokens.data() + row * T;
      const int32_t* targets = batch.targets.data() + row * T;
      std::map<std::vector<int32_t>, std::vector<int32_t>> value;
      for (int64_t i = 0; i < T;) {
        std::vector<int32_t> key, shown;
        for (; i < T && is_key(tokens[i]); ++i) key.push_back(tokens[i]);
        const int64_t begin = i;  // of the value
        for (; i < T && !is_key(tokens[i]); ++i) shown.push_back(tokens[i]);
        if (shown.empty()) break;  // what fills the end
        lengths.insert({key.size(), shown.size()});
        for (int64_t j = begin; j < i; ++j)
          CHECK(targets[j - 1] == (value.count(key) ? tokens[j] : kIgnored));
        if (value.count(key)) CHECK(value[key] == shown);
        value[key] = shown;
      }
      for (const auto& [a, ignored] : value)
        for (const auto& [b, too] : value)
          CHECK((a == b || a.size() > b.size() || !std::equal(a.begin(), a.end(), b.begin())));
    }
  }
  CHECK(lengths == std::set<size_t>{1, 2, 3});
}

TEST_CASE("tasks: memorise has one map, in training and test, and another for another seed") {
  const auto map_of = [](const BatchesPtr& batches) {
    std::map<int32_t, int32_t> map;
    for (int64_t step = 0; step < 20; ++step) {
      const HostBatch batch = made(*batches, step);
      for (size_t i = 0; i < batch.tokens.size(); ++i) {
        const int32_t key = batch.tokens[i], value = batch.targets[i];
        CHECK((key < 128 && value >= 128 && value < 256));
        CHECK((!map.count(key) || map[key] == value));
        map[key] = value;
      }
    }
    CHECK(map.size() == 128);
    return map;
  };
  const TaskOptions options{.name = "memorise"};
  const BatchShape shape{.rows = 4, .length = 64};
  const auto map = map_of(training_task(options, shape, 1));
  CHECK(map == map_of(test_task(options, shape, 1, 80)));
  CHECK(map != map_of(training_task(options, shape, 2)));
}

TEST_CASE("tasks: copy and reverse want what stood before the marker") {
  for (const std::string name : {"copy", "reverse"}) {
    INFO(name);
    const auto batches = training_task({.name = name, .marks = 5}, {.rows = 2, .length = 14}, 1);
    for (int64_t step = 0; step < 20; ++step) {
      const HostBatch batch = made(*batches, step);
      CHECK(batch.labelled == 10);
      for (int64_t row = 0; row < 2; ++row) {
        CHECK(batch.slices[static_cast<size_t>(row)] == 5);
        const auto tokens = batch.tokens.begin() + row * 14;
        const auto targets = batch.targets.begin() + row * 14;
        std::vector<int32_t> shown(tokens + 3, tokens + 8), wanted(targets + 9, targets + 14);
        if (name == "reverse") std::reverse(wanted.begin(), wanted.end());
        CHECK(shown == wanted);
        CHECK(std::all_of(shown.begin(), shown.end(), [](int32_t t) { return t < 14; }));
        CHECK(tokens[8] == 15);
        CHECK((std::count(tokens, tokens + 3, 14) == 3 &&
               std::count(tokens + 9, tokens + 14, 14) == 5));
      }
    }
  }
}

TEST_CASE("tasks: parity, s5 and stack want what the tokens so far make") {
  const BatchShape shape{.rows = 4, .length = 33};
  const auto each = [&](const std::string& name, const auto& check) {
    const auto batches = training_task({.name = name}, shape, 1);
    for (int64_t step = 0; step < 20; ++step) {
      const HostBatch batch = made(*batches, step);
      for (int64_t row = 0; row < 4; ++row)
        check(batch.tokens.data() + row * 33, batch.targets.data() + row * 33);
    }
  };
  each("parity", [](const int32_t* tokens, const int32_t* targets) {
    for (int64_t i = 0, ones = 0; i < 33; ++i) {
      ones += tokens[i];
      CHECK(targets[i] == ones % 2);
    }
  });
  // The n-th permutation by the factorial number system, and products by tables.
  const auto order = [](int64_t n) {
    std::vector<int> left{0, 1, 2, 3, 4}, p;
    for (const int64_t factor : {24, 6, 2, 1, 1}) {
      p.push_back(left[static_cast<size_t>(n / factor)]);
      left.erase(left.begin() + n / factor);
      n %= factor;
    }
    return p;
  };
  each("s5", [&](const int32_t* tokens, const int32_t* targets) {
    std::vector<int> things{0, 1, 2, 3, 4};
    for (int64_t i = 0; i < 33; ++i) {
      const std::vector<int> next = order(tokens[i]);
      for (int& thing : things) thing = next[static_cast<size_t>(thing)];
      CHECK(order(targets[i]) == things);
    }
  });
  each("stack", [](const int32_t* tokens, const int32_t* targets) {
    std::vector<int32_t> stack;
    int64_t taken = 0;
    for (int64_t i = 0; i < 33; ++i) {
      if (tokens[i] < 15) {
        CHECK(targets[i] == kIgnored);
        stack.push_back(tokens[i]);
        continue;
      }
      REQUIRE(!stack.empty());
      CHECK(targets[i] == stack.back());
      stack.pop_back();
      ++taken;
    }
    CHECK(taken >= 1);
  });
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
  CHECK(contains(make({.name = "recall"}, 65), "length 65, expected an even number"));
  CHECK(contains(make({.name = "recall", .vocabulary = 1}, 64), "expected at least 2"));
  CHECK(contains(make({.name = "noisy_recall", .vocabulary = 3}, 64), "expected at least 4"));
  CHECK(contains(make({.name = "fuzzy_recall"}, 11), "motifs of 3 tokens do not fit"));
  CHECK(contains(make({.name = "copy"}, 32), "16 marks do not fit into length 32"));
  CHECK(contains(make({.name = "s5", .vocabulary = 119}, 64), "expected at least 120"));
  CHECK(contains(make({.name = "stack"}, 1), "expected at least 2"));
  CHECK(contains(make({.name = "mquar"}, 64), "unknown task \"mquar\"; did you mean \"mqar\"?"));
}
