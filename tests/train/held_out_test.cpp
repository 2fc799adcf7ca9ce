// The held-out loss is the mean over all targets, however they are cut into batches; and a run that
// goes on knows the best one it has seen.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>

#include "tests/catch.h"
#include "tests/data/helpers.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

constexpr int64_t kLength = 16;

const layers::Model& model(int64_t vocabulary) {
  const auto make = [](int64_t size) {
    const Recipe recipe = recipe_from_text(
        "[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\ncontext = 16\ninit = 0.5\n"
        "[attention]\nheads = 2\n",
        "recipe.toml");
    return layers::Model(recipe.toml, size, Dtype::f64, kCpu, 1);
  };
  static const layers::Model bytes = make(256), small = make(64);
  return vocabulary == 256 ? bytes : small;
}

// The nats of each token behind the first, one row by itself.
std::vector<double> nats(const std::vector<int32_t>& tokens) {
  const auto n = static_cast<int64_t>(tokens.size()) - 1;
  const Tensor x = tensor_of(std::vector<int32_t>(tokens.begin(), tokens.end() - 1));
  const std::vector<double> logits = to_doubles(model(256).logits(x.reshape({1, n})));
  std::vector<double> all;
  for (int64_t t = 0; t < n; ++t) {
    const double* const row = logits.data() + t * 256;
    double sum = 0;
    for (int i = 0; i < 256; ++i) sum += std::exp(row[i]);
    all.push_back(std::log(sum) - row[tokens[static_cast<size_t>(t) + 1]]);
  }
  return all;
}

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return sum / static_cast<double>(x.size());
}

Evaluation evaluated(const data::BatchesPtr& batches, int64_t most = 0) {
  data::BatchSource source(batches, 0);
  source.next();  // it begins at the first all the same
  return evaluate(model(batches->vocabulary()), source, most, kCpu);
}

}  // namespace

TEST_CASE("held out: the loss is the mean over all targets, whatever the batch's rows") {
  const data::TokenPart part = random_text({50, 36}).all();  // 85 targets: five windows and 5 more
  const std::vector<int32_t> text = part.tokens(0, part.size());
  std::vector<double> each;
  for (size_t at = 0; at + 1 < text.size(); at += kLength) {
    const auto end = std::min(text.size(), at + kLength + 1);
    const auto begin = text.begin();
    const std::vector<double> row =
        nats({begin + static_cast<int64_t>(at), begin + static_cast<int64_t>(end)});
    each.insert(each.end(), row.begin(), row.end());
  }
  REQUIRE(each.size() == 85);
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 40}) {
    INFO(rows << " rows");
    const Evaluation e = evaluated(data::held_out_windows(part, {.rows = rows, .length = kLength}));
    CHECK(e.tokens == 85);
    CHECK(e.loss == Approx(mean(each)).epsilon(1e-12));
    CHECK(e.perplexity == Approx(std::exp(mean(each))).epsilon(1e-10));
    CHECK(e.bits_per_byte == Approx(mean(each) / std::numbers::ln2).epsilon(1e-12));
  }
  // Of the first batches alone where only so many are wanted.
  each.resize(64);
  const data::BatchesPtr twos = data::held_out_windows(part, {.rows = 2, .length = kLength});
  CHECK(evaluated(twos, 2).tokens == 64);
  CHECK(evaluated(twos, 2).loss == Approx(mean(each)).epsilon(1e-12));
}

TEST_CASE("held out: of packed documents only the tokens that have a target count") {
  // Each is half a row long, so that no batch cuts one.
  const data::TokenPart part = random_text(std::vector<int64_t>(11, kLength / 2)).all();
  std::vector<double> each;
  for (int64_t d = 0; d < 11; ++d) {
    const std::vector<double> row = nats(part.tokens(d * 8, d * 8 + 8));
    each.insert(each.end(), row.begin(), row.end());
  }
  for (const int64_t rows : {1, 2, 3, 4, 6}) {
    INFO(rows << " rows");
    const Evaluation e = evaluated(data::held_out_packed(part, {.rows = rows, .length = kLength}));
    CHECK(e.tokens == 77);
    CHECK(e.loss == Approx(mean(each)).epsilon(1e-12));
  }
}

TEST_CASE("held out: a task's loss and accuracy do not depend on the batch's rows") {
  const auto of = [](int64_t rows) {
    return evaluated(data::test_task({.name = "mqar", .vocabulary = 64, .pairs = {1, 2, 4}},
                                     {.rows = rows, .length = kLength}, 3, 10));
  };
  const Evaluation one = of(1);
  CHECK(one.tokens == 22);  // 1 + 2 + 4, three times, and 1
  for (const int64_t rows : {2, 3, 4, 7, 10, 16}) {
    INFO(rows << " rows");
    const Evaluation e = of(rows);
    CHECK(e.tokens == one.tokens);
    CHECK(e.loss == Approx(one.loss).epsilon(1e-12));
    CHECK(e.accuracy == one.accuracy);
    CHECK(e.slices == one.slices);
  }
}

TEST_CASE("held out: a run that goes on remembers its best loss, and keeps its best.h5") {
  const Folder f;
  std::string words;
  for (int i = 0; i < 300; ++i) words += concat("word ", i % 37, " of the text\n");
  f.write("text.txt", words);
  // So large a rate that every step after the first makes it worse.
  f.write("recipe.toml", kSmallModel + R"([optimizer]
lr = 100.0
[schedule]
type = "constant"
warmup = 200
[train]
steps = 3
batch = 2
eval_every = 1
eval_batches = 2
checkpoint_every = 1
out = "run"
[sample]
tokens = 0
)");
  const auto losses = [&] {
    std::vector<double> all;
    std::istringstream lines(f.read("run/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      if (j.contains("eval_loss")) all.push_back(j["eval_loss"]);
    }
    return all;
  };
  std::vector<std::string> arguments{"train", "recipe.toml"};
  for (const int64_t steps : {4, 12}) {
    arguments.insert(arguments.end(), {"--set", concat("train.steps=", steps)});
    const Ran ran = run_weft(f, arguments);
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    arguments.emplace_back("--resume");
  }
  const std::vector<double> all = losses();
  REQUIRE(all.size() == 12);
  const auto best = std::min_element(all.begin(), all.end());
  REQUIRE(best - all.begin() < 4);  // seen before the run went on
  const std::string out = f / "run";
  const RunState last = read_state(open_checkpoint(checkpoint_path(out, 12)));
  CHECK(last.best_loss == Approx(*best).epsilon(1e-12));
  CHECK(last.best_step == best - all.begin() + 1);
  CHECK(step_of_best(out) == last.best_step);
}

namespace {

// Tokens 'a', 'b', ... that stand for 1, 2, ... bytes.
struct Lengths final : data::Tokenizer {
  Lengths() {
    for (size_t i = 0; i < 5; ++i) pieces_.push_back(std::string(i + 1, 'x'));
  }
  std::string kind() const override { return "lengths"; }
  void encode(std::string_view text, const Give& give) const override {
    std::vector<int32_t> tokens;
    for (const char c : text) tokens.push_back(c - 'a');
    give(tokens);
  }
};

layers::Model model_of(int64_t vocabulary, const std::string& more = "") {
  const Recipe recipe = recipe_from_text(
      "[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\ncontext = 16\ninit = 0.5\n" +
          more + "[attention]\nheads = 2\n",
      "recipe.toml");
  return {recipe.toml, vocabulary, Dtype::f64, kCpu, 1};
}

}  // namespace

TEST_CASE("held out: bits per byte are those of the bytes that the tokens stand for") {
  // The targets of "abcde" four times are 19 tokens of 4 * 15 - 1 bytes.
  const auto set =
      data::dataset_from_documents({{"", "abcdeabcdeabcdeabcde"}}, std::make_shared<Lengths>());
  const layers::Model trained = model_of(5), knows_nothing = model_of(5);
  for (const layers::Parameter& p : knows_nothing.parameters()) p.master.zero();
  for (const int64_t rows : {1, 2, 5}) {
    data::BatchSource source(data::held_out_windows(set.all(), {.rows = rows, .length = 7}), 0);
    const Evaluation none = evaluate(knows_nothing, source, 0, kCpu);
    CHECK(none.tokens == 19);
    CHECK(none.loss == Approx(1.6094379124341003).epsilon(1e-12));  // log 5
    CHECK(none.perplexity == Approx(5).epsilon(1e-12));
    CHECK(none.bits_per_byte == Approx(0.747739555980676).epsilon(1e-12));  // 19 log2(5) / 59
    CHECK(none.accuracy == -1);
    CHECK(none.whole);
    CHECK(none.text() == "held-out loss 1.6094, 0.7477 bits per byte, perplexity 5.000");
    const Evaluation some = evaluate(trained, source, 0, kCpu);
    CHECK(some.bits_per_byte == Approx(some.loss * 19 / std::numbers::ln2 / 59).epsilon(1e-12));
  }
}

TEST_CASE("held out: accuracy is the part of all answers that the likeliest guess hits, by kind") {
  const layers::Model m = model_of(10);
  const data::BatchesPtr batches = data::test_task(
      {.name = "mqar", .vocabulary = 10, .pairs = {1, 2, 4}}, {.rows = 4, .length = 16}, 3, 90);
  std::map<int64_t, std::pair<double, double>> by_pairs;
  double hits = 0, all = 0;
  for (int64_t step = 0; step < batches->count(); ++step) {
    data::HostBatch b;
    batches->make(step, b);
    const auto logits = to_doubles(m.logits(tensor_of(b.tokens).reshape({4, 16})));
    for (size_t i = 0; i < b.targets.size(); ++i) {
      if (b.targets[i] == data::kIgnored) continue;
      const auto row = logits.begin() + static_cast<int64_t>(i) * 10;
      const bool hit = std::max_element(row, row + 10) - row == b.targets[i];
      hits += hit, all += 1;
      auto& [of_kind, count] = by_pairs[b.slices[i / 16]];
      of_kind += hit, count += 1;
    }
  }
  REQUIRE(all == 90.0 / 3 * 7);
  REQUIRE(hits > 0);
  data::BatchSource source(batches, 0);
  const Evaluation e = evaluate(m, source, 0, kCpu);
  CHECK(e.tokens == all);
  CHECK(e.accuracy == Approx(hits / all).epsilon(1e-12));
  CHECK(e.bits_per_byte == -1);
  REQUIRE(e.slices.size() == 3);
  for (const auto& [pairs, n] : by_pairs)
    CHECK(e.slices.at(pairs) == Approx(n.first / n.second).epsilon(1e-12));
}

TEST_CASE("held out: an evaluation is told in words, by kind where there are several") {
  Evaluation e{.loss = 1.25, .perplexity = 3.5, .accuracy = 0.5};
  e.slices[4] = 0.25;
  CHECK(e.text() == "held-out loss 1.2500, accuracy 0.5000");
  e.slices[8] = 0.75;
  CHECK(e.text() == "held-out loss 1.2500, accuracy 0.5000, 4: 0.250, 8: 0.750");
  CHECK((Evaluation{.loss = 1.25, .perplexity = 3.5}.text()) ==
        "held-out loss 1.2500, perplexity 3.500");
}

TEST_CASE("held out: an evaluation begins at the first batch, and ends where it is told to") {
  const data::BatchesPtr batches =
      data::held_out_windows(random_text({100}).all(), {.rows = 1, .length = kLength});
  data::BatchSource source(batches, 2);
  const Evaluation first = evaluate(model(256), source, 2, kCpu);
  const Evaluation second = evaluate(model(256), source, 2, kCpu);
  CHECK(second.loss == first.loss);
  CHECK(first.tokens == 2 * kLength);
  CHECK(evaluate(model(256), source, 1000, kCpu).tokens == 99);
  int asked = 0;
  const Evaluation stopped = evaluate(model(256), source, 0, kCpu, [&] { return ++asked == 3; });
  CHECK_FALSE(stopped.whole);
  CHECK(asked == 3);
  CHECK(evaluate(model(256), source, 0, kCpu, [] { return false; }).whole);
}

TEST_CASE("held out: a batch without any target is passed over, wherever it lies") {
  for (const bool first : {true, false}) {
    std::vector<int64_t> documents(kLength, 1);
    documents.insert(first ? documents.end() : documents.begin(), kLength);
    data::BatchSource source(
        data::held_out_packed(random_text(documents).all(), {.length = kLength}), 0);
    CHECK(evaluate(model(256), source, 0, kCpu).tokens == kLength - 1);
  }
}

TEST_CASE("held out: a part without any target is refused") {
  data::BatchSource source(data::held_out_packed(random_text({1, 1, 1}).all(), {.length = 16}), 0);
  CHECK_THROWS_WITH(
      evaluate(model(256), source, 0, kCpu),
      ContainsSubstring("no token to predict in 1 batch (") && ContainsSubstring("data.document"));
}
