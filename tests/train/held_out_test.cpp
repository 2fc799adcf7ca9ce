// The held-out loss is the mean over all targets, however they are cut into batches; and a run that
// goes on knows the best one it has seen.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>

#include "core/random.h"
#include "tests/catch.h"
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

data::TokenDataset random_text(const std::vector<int64_t>& sizes) {
  const Random random(5);
  std::vector<data::Document> all;
  uint64_t at = 0;
  for (const int64_t size : sizes) {
    std::string text;
    for (int64_t i = 0; i < size; ++i) text += static_cast<char>(random.below(256, at++));
    all.push_back({"", text});
  }
  return data::dataset_from_documents(all, data::byte_tokenizer());
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
