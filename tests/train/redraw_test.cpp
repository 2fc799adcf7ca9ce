// Projections that are drawn anew while a model trains: a run that goes on, and a checkpoint that
// is used, draw what the run itself drew.
#include <filesystem>
#include <regex>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

constexpr const char* kRecipe = R"(
[model]
width = 16
layers = 2
pattern = ["performer"]
context = 16
[mlp]
width = 32
[performer]
type = "linear_attention"
heads = 2
feature_map = "favor+"
features = 8
redraw = 4
[data]
source = "text.txt"
[train]
steps = 12
batch = 2
eval_every = 6
eval_batches = 3
checkpoint_every = 6
keep = 9
log_every = 1
out = "run"
[sample]
tokens = 0
)";

void prepare(const Folder& f) {
  f.write("recipe.toml", kRecipe);
  std::string text;
  for (int i = 0; i < 400; ++i) text += concat("line ", i * i % 97, " of a small text\n");
  f.write("text.txt", text);
}

std::string ran(const Folder& f, const std::vector<std::string>& words) {
  const Ran r = run_weft(f, words);
  INFO(r.text);
  REQUIRE(r.status == 0);
  return r.text;
}

// The numbers that metrics.jsonl has under `key`, in order.
std::vector<std::string> values(const std::string& metrics, const std::string& key) {
  const std::regex each("\"" + key + "\":\"?([^,}\"]+)");
  std::vector<std::string> list;
  for (std::sregex_iterator i(metrics.begin(), metrics.end(), each), end; i != end; ++i)
    list.push_back((*i)[1]);
  return list;
}

}  // namespace

TEST_CASE(
    "redraw: a run that goes on between two draws ends in the bits of one that did not stop") {
  const Folder whole, cut;
  prepare(whole);
  prepare(cut);
  ran(whole, {"train", "recipe.toml", "--device", "cpu"});
  ran(cut, {"train", "recipe.toml", "--device", "cpu"});
  const std::string metrics = whole.read("run/metrics.jsonl");
  for (const char* later : {"run/checkpoints/step-0000000012.h5", "run/best.h5"})
    std::filesystem::remove(cut / later);
  ran(cut, {"train", "recipe.toml", "--device", "cpu",
            "--resume"});  // from 6, between the draws of 4 and 8
  CHECK(values(cut.read("run/metrics.jsonl"), "hash") == values(metrics, "hash"));
  CHECK(values(cut.read("run/metrics.jsonl"), "eval_loss") == values(metrics, "eval_loss"));
  CHECK(values(metrics, "eval_loss").size() == 2);
  const Folder never;
  prepare(never);
  ran(never, {"train", "recipe.toml", "--device", "cpu", "--set", "performer.redraw=0"});
  const auto a = values(metrics, "hash"), b = values(never.read("run/metrics.jsonl"), "hash");
  REQUIRE(a.size() == 12);
  CHECK(a[3] == b[3]);
  CHECK(a[4] != b[4]);  // the fifth step is the first with another draw
}

TEST_CASE("redraw: a checkpoint is evaluated with the projections that its run had then") {
  const Folder f;
  prepare(f);
  ran(f, {"train", "recipe.toml", "--device", "cpu"});
  const auto losses = values(f.read("run/metrics.jsonl"), "eval_loss");
  REQUIRE(losses.size() == 2);
  const std::string text = ran(f, {"eval", "run/checkpoints/step-0000000012.h5", "--batches", "3"});
  const std::string before = "held-out loss ";
  const size_t at = text.find(before);
  REQUIRE(at != std::string::npos);
  CHECK(std::stod(text.substr(at + before.size())) == Approx(std::stod(losses[1])).margin(1e-4));
}
