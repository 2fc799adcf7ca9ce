// What a place in the data hangs on, and what a batch counts.
#include <cstring>
#include <set>

#include "core/file.h"
#include "data/batches.h"
#include "data/tasks.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

// Tokens 'a', 'b', ... that stand for 1, 2, ... bytes, and one for none.
struct Lengths final : Tokenizer {
  explicit Lengths(char of = 'x') {
    for (size_t i = 0; i < 5; ++i) pieces_.push_back(std::string(i + 1, of));
    pieces_.emplace_back();
  }
  std::string kind() const override { return "lengths"; }
  void encode(std::string_view text, const Give& give) const override {
    std::vector<int32_t> tokens;
    for (const char c : text) tokens.push_back(c - 'a');
    give(tokens);
  }
};

}  // namespace

TEST_CASE("places: every number of a shape, the seed, the text and the order tell places apart") {
  const TokenPart part = random_text({300, 200}).all(), other = random_text({200, 300}).all();
  const BatchShape shape{.rows = 2, .length = 8};
  std::set<uint64_t> seen;
  for (const BatchesPtr& b : {training_windows(part, shape, 1), training_windows(part, shape, 2),
                              training_windows(other, shape, 1), training_packed(part, shape, 1),
                              held_out_windows(part, shape), held_out_packed(part, shape),
                              training_windows(part, {.rows = 3, .length = 8}, 1),
                              training_windows(part, {.rows = 2, .length = 9}, 1),
                              training_windows(part, {.rows = 2, .length = 8, .world = 2}, 1),
                              training_packed(part, {.rows = 2, .length = 9}, 1)})
    seen.insert(b->fingerprint());
  CHECK(seen.size() == 10);
  // Of the shares of one world it is the same: a checkpoint is of all.
  CHECK(training_windows(part, {.rows = 2, .length = 8, .rank = 1, .world = 2}, 1)->fingerprint() ==
        training_windows(part, {.rows = 2, .length = 8, .world = 2}, 1)->fingerprint());
}

TEST_CASE("places: every key of a task tells its places apart") {
  const BatchShape shape{.rows = 2, .length = 64};
  const TaskOptions base{.name = "mqar", .vocabulary = 64, .pairs = {2}};
  const auto with = [&](const auto& change) {
    TaskOptions o = base;
    change(o);
    return training_task(o, shape, 1)->fingerprint();
  };
  std::set<uint64_t> seen{
      training_task(base, shape, 1)->fingerprint(),
      training_task(base, shape, 2)->fingerprint(),
      test_task(base, shape, 1, 9)->fingerprint(),
      test_task(base, shape, 1, 10)->fingerprint(),
      training_task(base, {.rows = 3, .length = 64}, 1)->fingerprint(),
      training_task(base, {.rows = 2, .length = 66}, 1)->fingerprint(),
      training_task(base, {.rows = 2, .length = 64, .world = 2}, 1)->fingerprint(),
      with([](TaskOptions& o) { o.name = "induction"; }),
      with([](TaskOptions& o) { o.vocabulary = 66; }),
      with([](TaskOptions& o) {
        o.pairs = {2, 4};
      }),
      with([](TaskOptions& o) { o.random_filler = false; }),
      with([](TaskOptions& o) { o.power = 0.5; }),
      with([](TaskOptions& o) { o.examples = 9; })};
  CHECK(seen.size() == 13);
}

TEST_CASE("places: a state that lacks a part, or lies before the start, is refused") {
  const auto batches = training_windows(random_text({100}).all(), {.rows = 1, .length = 8}, 1);
  BatchSource source(batches, 0);
  auto state = source.state();
  CHECK(state.at("step") == 0);
  const auto refused = [&](const std::map<std::string, int64_t>& bad) {
    return contains(message([&] { source.restore(bad); }), "is incomplete");
  };
  CHECK(refused({}));
  CHECK(refused({{"step", 1}}));
  CHECK(refused({{"fingerprint", state.at("fingerprint")}}));
  state["step"] = -1;
  CHECK(refused(state));
  state["step"] = 5;
  source.restore(state);
  CHECK(source.step() == 5);
  HostBatch batch;
  source.next(batch);
  CHECK(source.step() == 6);
  CHECK(batch.tokens == made(*batches, 5).tokens);
  source.rewind();
  CHECK(source.step() == 0);
  source.next(batch);
  CHECK(batch.tokens == made(*batches, 0).tokens);
}

TEST_CASE("places: another seed shuffles the windows and shifts their grid otherwise") {
  const TokenPart part = random_text({1000}).all();
  const auto text = part.tokens(0, part.size());
  std::set<int64_t> shifts;
  std::set<std::vector<int64_t>> orders;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const auto batches = training_windows(part, {.rows = 1, .length = 10}, seed);
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 99; ++i) {
      const HostBatch b = made(*batches, i);
      order.push_back(std::search(text.begin(), text.end(), b.tokens.begin(), b.tokens.end()) -
                      text.begin());
    }
    const int64_t shift = *std::min_element(order.begin(), order.end());
    shifts.insert(shift);
    for (int64_t& at : order) at -= shift;
    orders.insert(order);
  }
  CHECK(shifts.size() > 4);
  CHECK(*shifts.rbegin() < 10);
  CHECK(orders.size() == 12);
}

TEST_CASE("places: over many epochs the grid takes every shift, the first and last token too") {
  const TokenPart part = random_text({41}).all();  // one window of 20, or two without a shift
  const auto text = part.tokens(0, part.size());
  const auto batches = training_windows(part, {.rows = 1, .length = 10}, 3);
  REQUIRE(batches->epoch_steps() == 3);  // (40 - 9) / 10
  std::set<int64_t> begins;
  for (int64_t i = 0; i < 600; ++i) {
    const HostBatch b = made(*batches, i);
    begins.insert(std::search(text.begin(), text.end(), b.tokens.begin(), b.tokens.end()) -
                  text.begin());
  }
  CHECK(begins.size() == 30);
  CHECK(*begins.begin() == 0);
  CHECK(*begins.rbegin() == 29);  // its last target is token 39
}

TEST_CASE("places: an epoch of windows has as many as always fit, one at least") {
  const auto windows = [](int64_t tokens) {
    return training_windows(random_text({tokens}).all(), {.rows = 1, .length = 10}, 1)
        ->epoch_steps();
  };
  CHECK(windows(11) == 1);
  CHECK(windows(29) == 1);
  CHECK(windows(30) == 2);
  CHECK(windows(39) == 2);
  CHECK(windows(40) == 3);
  CHECK(training_windows(random_text({40}).all(), {.rows = 2, .length = 10, .world = 3}, 1)
            ->epoch_steps() == 0.5);
  CHECK(training_packed(random_text({40}).all(), {.rows = 2, .length = 10}, 1)->epoch_steps() == 2);
}

TEST_CASE("places: a window of a short text ends before the text does, in every epoch") {
  for (const int64_t tokens : {11, 12, 15, 19, 20, 21, 22, 29, 30}) {
    INFO(tokens << " tokens");
    const auto batches =
        training_windows(random_text({tokens}).all(), {.rows = 1, .length = 10}, 7);
    int64_t short_ones = 0;
    for (int64_t i = 0; i < 200; ++i) short_ones += made(*batches, i).labelled != 10;
    CHECK(short_ones == 0);
  }
}

TEST_CASE("places: a place in a text is another in another vocabulary") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word" + std::to_string(i % 97) + (i % 9 ? " " : "\n");
  write_file(folder / "a.txt", text);
  write_file(folder / "b.txt", "abcdeabcdeabcde");
  std::set<uint64_t> seen;
  for (const TokenizerPtr& tokenizer :
       {byte_tokenizer(), train_tokenizer({folder / "a.txt"}, {}, {.size = 310}),
        train_tokenizer({folder / "a.txt"}, {}, {.size = 320})})
    seen.insert(training_windows(open_data({folder / "a.txt"}, {}, tokenizer).all(),
                                 {.rows = 1, .length = 8}, 1)
                    ->fingerprint());
  CHECK(seen.size() == 3);
  // Of as many tokens with the same numbers: the pieces alone differ.
  for (const char of : {'x', 'y'})
    seen.insert(
        training_windows(open_data({folder / "b.txt"}, {}, std::make_shared<Lengths>(of)).all(),
                         {.rows = 1, .length = 8}, 1)
            ->fingerprint());
  CHECK(seen.size() == 5);
}

TEST_CASE("places: held-out batches are as many as it takes, the last one filled") {
  const auto count = [](int64_t tokens, int64_t rows, int64_t world = 1) {
    return held_out_windows(random_text({tokens}).all(),
                            {.rows = rows, .length = 10, .world = world})
        ->count();
  };
  CHECK(count(2, 1) == 1);
  CHECK(count(11, 1) == 1);
  CHECK(count(12, 1) == 2);
  CHECK(count(21, 2) == 1);
  CHECK(count(22, 2) == 2);
  CHECK(count(41, 2, 2) == 1);
  CHECK(count(42, 2, 2) == 2);
  const auto packed = [](int64_t tokens) {
    return held_out_packed(random_text({tokens}).all(), {.rows = 2, .length = 10})->count();
  };
  CHECK(packed(20) == 1);
  CHECK(packed(21) == 2);
  CHECK(contains(message([] { held_out_windows(random_text({1}).all(), {.length = 10}); }),
                 "has 1 tokens, expected at least 2"));
  const HostBatch last = made(*held_out_windows(random_text({13}).all(), {.length = 10}), 1);
  CHECK(last.labelled == 2);
  CHECK(std::count(last.targets.begin() + 2, last.targets.end(), kIgnored) == 8);
  CHECK(std::count(last.tokens.begin() + 3, last.tokens.end(), 0) == 7);
}

TEST_CASE("places: a batch counts the bytes that its targets stand for") {
  // The targets of "abcdef" are b c d e f, of 2, 3, 4, 5 and no bytes.
  const auto set =
      dataset_from_documents({{"", "abcdef"}, {"", "ea"}}, std::make_shared<Lengths>());
  const HostBatch one = made(*held_out_windows(set.all(), {.rows = 1, .length = 5}), 0);
  CHECK(one.labelled == 5);
  CHECK(one.target_bytes == 2 + 3 + 4 + 5 + 0);
  const HostBatch all = made(*held_out_windows(set.all(), {.rows = 2, .length = 5}), 0);
  CHECK(all.labelled == 7);
  CHECK(all.target_bytes == 14 + 5 + 1);
  const HostBatch packed = made(*held_out_packed(set.all(), {.rows = 1, .length = 8}), 0);
  CHECK(packed.labelled == 6);
  CHECK(packed.target_bytes == 14 + 1);
}

TEST_CASE("places: a packed batch is written out with its borders and targets") {
  const auto set = dataset_from_documents({{"", "abcde"}, {"", "f"}, {"", "gh"}}, byte_tokenizer());
  const auto batches = held_out_packed(set.all(), {.rows = 2, .length = 3});
  REQUIRE(batches->count() == 2);
  const HostBatch first = made(*batches, 0), second = made(*batches, 1);
  const int32_t none = kIgnored;
  CHECK(first.tokens == std::vector<int32_t>{'a', 'b', 'c', 'd', 'e', 'f'});
  CHECK(first.targets == std::vector<int32_t>{'b', 'c', 'd', 'e', none, none});
  CHECK(first.cu_seqlens == std::vector<int32_t>{0, 3, 5, 6});  // no document above 3
  CHECK(second.tokens == std::vector<int32_t>{'g', 'h', 0, 0, 0, 0});
  CHECK(second.targets == std::vector<int32_t>{'h', none, none, none, none, none});
  CHECK(second.cu_seqlens == std::vector<int32_t>{0, 2, 5, 6});
  CHECK(first.slices.empty());
  CHECK(made(*batches, 2).labelled == 0);
}

TEST_CASE("places: a document of the context's length is one piece, one longer has two") {
  const auto borders = [](const std::vector<Document>& documents, int64_t length) {
    const auto set = dataset_from_documents(documents, byte_tokenizer());
    return made(*held_out_packed(set.all(), {.rows = 2, .length = length}), 0).cu_seqlens;
  };
  CHECK(borders({{"", "abcd"}, {"", "efgh"}}, 4) == std::vector<int32_t>{0, 4, 8});
  CHECK(borders({{"", "abcde"}, {"", "fgh"}}, 4) == std::vector<int32_t>{0, 4, 5, 8});
  CHECK(borders({{"", "abcdefgh"}}, 4) == std::vector<int32_t>{0, 4, 8});
  CHECK(borders({{"", "abcdefghijk"}}, 4) == std::vector<int32_t>{0, 4, 8});
}

TEST_CASE("places: what was made ahead is not handed out after a move") {
  const auto batches = training_windows(random_text({500}).all(), {.rows = 1, .length = 8}, 1);
  for (const int prefetch : {1, 2, 5}) {
    BatchSource source(batches, prefetch);
    HostBatch batch;
    source.next(batch);
    source.next(batch);
    auto state = source.state();
    for (const int64_t step : {9, 0, 3}) {
      state["step"] = step;
      source.restore(state);
      source.next(batch);
      CHECK(batch.tokens == made(*batches, step).tokens);
      source.next(batch);
      CHECK(batch.tokens == made(*batches, step + 1).tokens);
    }
  }
}

TEST_CASE("places: after an evaluation's last batch its first comes again") {
  const auto batches = held_out_windows(random_text({35}).all(), {.rows = 1, .length = 10});
  REQUIRE(batches->count() == 4);
  for (const int prefetch : {0, 2}) {
    BatchSource source(batches, prefetch);
    HostBatch batch;
    for (int64_t i = 0; i < 11; ++i) {
      source.next(batch);
      CHECK(batch.targets == made(*batches, i % 4).targets);
    }
  }
}

TEST_CASE("places: a share that is not there, and sizes of nothing, are refused") {
  const TokenPart part = random_text({100}).all();
  for (const BatchShape& shape :
       {BatchShape{.rows = 0, .length = 8}, BatchShape{.rows = 1, .length = 0},
        BatchShape{.rows = 1, .length = 8, .rank = 1, .world = 1},
        BatchShape{.rows = 1, .length = 8, .rank = -1, .world = 1}}) {
    CHECK(contains(message([&] { training_windows(part, shape, 1); }),
                   "expected positive numbers and a share that is there"));
    CHECK(contains(message([&] { held_out_packed(part, shape); }), "expected positive numbers"));
  }
  CHECK(contains(message([&] {
                   training_task({.name = "mqar"}, {.rows = 2, .length = 64, .rank = 2, .world = 2},
                                 1);
                 }),
                 "share 2 of 2"));
}

TEST_CASE("places: a text has targets where a document has two tokens") {
  CHECK_FALSE(has_targets(random_text({1, 1, 1}).all()));
  CHECK(has_targets(random_text({1, 1, 2}).all()));
  CHECK(has_targets(random_text({2, 1}).all()));
  CHECK(contains(message([] {
                   training_packed(random_text({1, 1}).all(), {.length = 2}, 1);
                 }),
                 "none of its 2 documents has two tokens"));
}

TEST_CASE("places: tasks end at their bounds, and their standards are those of the header") {
  const auto make = [](const TaskOptions& o, int64_t length) {
    return message([&] { training_task(o, {.rows = 1, .length = length}, 1); });
  };
  CHECK(make({.name = "mqar", .pairs = {16}}, 64) == "no error");
  CHECK(make({.name = "mqar", .pairs = {0}}, 64) != "no error");
  CHECK(make({.name = "mqar", .pairs = {4, 17}}, 64) != "no error");
  CHECK(make({.name = "mqar", .pairs = {}}, 64) != "no error");
  CHECK(make({.name = "mqar", .vocabulary = 10, .pairs = {4}}, 64) == "no error");
  CHECK(make({.name = "mqar", .vocabulary = 9, .pairs = {4}}, 64) != "no error");
  CHECK(make({.name = "selective_copy", .marks = 16}, 33) == "no error");
  CHECK(make({.name = "selective_copy", .marks = 0}, 33) != "no error");
  CHECK(make({.name = "selective_copy", .vocabulary = 2, .marks = 1}, 33) != "no error");
  CHECK(make({.name = "selective_copy", .vocabulary = 3, .marks = 1}, 33) == "no error");
  CHECK(make({.name = "induction"}, 4) == "no error");
  CHECK(make({.name = "induction", .vocabulary = 2}, 4) == "no error");
  CHECK(make({.name = "induction", .vocabulary = 1}, 4) != "no error");
  CHECK(make({.name = "induction", .examples = -1}, 4) != "no error");
  const BatchShape shape{.rows = 1, .length = 64};
  CHECK(contains(message([&] { test_task({.name = "induction"}, shape, 1, 0); }),
                 "0 test examples, expected 1 or more"));
  CHECK(training_task({.name = "mqar"}, shape, 1)->vocabulary() == 8192);
  CHECK(training_task({.name = "selective_copy"}, shape, 1)->vocabulary() == 16);
  CHECK(training_task({.name = "induction"}, shape, 1)->vocabulary() == 16);
  CHECK(training_task({.name = "induction", .vocabulary = 5}, shape, 1)->vocabulary() == 5);
  CHECK(training_task({.name = "mqar"}, shape, 1)->count() == -1);
  const HostBatch copied = made(*training_task({.name = "selective_copy"}, shape, 1), 0);
  CHECK(copied.labelled == 16);
  CHECK(copied.slices == std::vector<int64_t>{16});
  CHECK(copied.target_bytes == 0);
  CHECK(made(*training_task({.name = "mqar"}, shape, 1), 0).slices == std::vector<int64_t>{4});
  CHECK(made(*training_task({.name = "induction"}, shape, 1), 0).slices == std::vector<int64_t>{0});
}

TEST_CASE("places: a task's tokens reach both ends of their ranges and no further") {
  const auto batches = training_task({.name = "mqar", .vocabulary = 10, .pairs = {4}},
                                     {.rows = 40, .length = 16}, 1);
  std::set<int32_t> keys, values;
  std::set<int64_t> queries;
  const HostBatch b = made(*batches, 0);
  for (size_t row = 0; row < 40; ++row)
    for (size_t i = 0; i < 16; ++i) {
      if (i < 8) (i % 2 ? values : keys).insert(b.tokens[row * 16 + i]);
      if (b.targets[row * 16 + i] != kIgnored) queries.insert(static_cast<int64_t>(i));
    }
  CHECK(keys == std::set<int32_t>{1, 2, 3, 4});
  CHECK(values == std::set<int32_t>{5, 6, 7, 8, 9});
  CHECK(queries == std::set<int64_t>{8, 10, 12, 14});

  const auto induction =
      training_task({.name = "induction", .vocabulary = 4}, {.rows = 300, .length = 6}, 1);
  std::set<int64_t> places;
  std::set<int32_t> wanted;
  const HostBatch i = made(*induction, 0);
  for (int64_t row = 0; row < 300; ++row) {
    const auto at = i.tokens.begin() + row * 6;
    places.insert(std::find(at, at + 6, 3) - at);
    wanted.insert(i.targets[static_cast<size_t>(row * 6 + 5)]);
  }
  CHECK(places == std::set<int64_t>{0, 1, 2});
  CHECK(wanted == std::set<int32_t>{0, 1, 2});
}
