// What `weft inspect` plans is what `weft train` counts, to the byte, for every recipe there is.
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/random.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

std::string text() {
  std::string t;
  const Random random(3);
  for (uint64_t i = 0; t.size() < 200000; ++i)
    t += concat("Line ", random.below(9000, i),
                i % 5 ? " of the text.\n" : ", and a longer one it is.\n");
  return t;
}

}  // namespace

TEST_CASE("inspect: the planned peak equals the counted one for every recipe, packed or not") {
  const Folder f;
  f.write("text.txt", text());
  int recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(tests::source_path("recipes"))) {
    if (entry.path().extension() != ".toml") continue;
    const std::string path = entry.path().string(), name = entry.path().stem().string();
    std::vector<std::string> settings{"--set", "train.steps=2",        "--set", "train.log_every=1",
                                      "--set", "train.eval_batches=1", "--set", "sample.tokens=0",
                                      "--set", "train.batch=2"};
    const bool task = name.rfind("mqar", 0) == 0;
    for (const bool packed : {false, true}) {
      if (packed && task) continue;
      std::vector<std::string> all = settings;
      if (!task)
        for (const char* s : {"--set", "data.source=text.txt", "--set", "data.document=line"})
          all.emplace_back(s);
      if (packed)
        for (const char* s : {"--set", "data.packed=true"}) all.emplace_back(s);
      const std::string out = concat(name, packed ? "-packed" : "");
      std::vector<std::string> train{"train", path, "--set", "train.out=" + out},
          inspect{"inspect", path, "--json"};
      train.insert(train.end(), all.begin(), all.end());
      inspect.insert(inspect.end(), all.begin(), all.end());
      const Ran planned = run_weft(f, inspect), ran = run_weft(f, train);
      INFO(out << "\n" << planned.text << "\n" << ran.text);
      REQUIRE(planned.status == 0);
      REQUIRE(ran.status == 0);
      const auto plan = nlohmann::json::parse(planned.text);
      std::istringstream lines(f.read(out + "/metrics.jsonl"));
      for (std::string line; std::getline(lines, line);) {
        const auto step = nlohmann::json::parse(line);
        if (step.contains("peak_bytes")) CHECK(step["peak_bytes"] == plan["peak_bytes"]);
      }
      CHECK(plan["parameter_bytes"].get<int64_t>() > 0);
      CHECK(plan["decode_state_bytes"].get<int64_t>() >= 0);
      ++recipes;
    }
  }
  CHECK(recipes >= 2);
}

TEST_CASE("inspect: the plan of many micro-batches is that of few but for the sums of their tree") {
  const Folder f;
  f.write("text.txt", text());
  f.write("recipe.toml", R"(
[model]
width = 16
layers = 2
pattern = ["attention"]
context = 32
[mlp]
width = 16
[attention]
heads = 2
[data]
source = "text.txt"
document = "line"
held_out = 0
[train]
steps = 1
batch = 3
)");
  for (const char* packed : {"data.packed=false", "data.packed=true"}) {
    const auto planned = [&](int64_t count) {
      const Ran ran = run_weft(f, {"inspect", "recipe.toml", "--json", "--set", packed, "--set",
                                   concat("train.accumulate=", count)});
      INFO(ran.text);
      REQUIRE(ran.status == 0);
      return nlohmann::json::parse(ran.text);
    };
    for (const int64_t count : {1, 2, 3, 5}) {
      REQUIRE(run_weft(f, {"train", "recipe.toml", "--overwrite", "--set", packed, "--set",
                           concat("train.accumulate=", count)})
                  .status == 0);
      const auto step = nlohmann::json::parse(f.read("runs/recipe/metrics.jsonl"));
      CHECK(step["peak_bytes"] == planned(count)["peak_bytes"]);
    }
    // A sum of gradients for each level of the tree, and nothing else.
    auto many = planned(16777216), few = planned(3);
    CHECK(many["gradient_bytes"] == 25 * few["parameter_bytes"].get<int64_t>());
    CHECK(few["gradient_bytes"] == 2 * few["parameter_bytes"].get<int64_t>());
    CHECK(many["peak_bytes"].get<int64_t>() - few["peak_bytes"].get<int64_t>() ==
          23 * few["parameter_bytes"].get<int64_t>());
    for (auto* plan : {&many, &few}) {
      plan->erase("gradient_bytes");
      plan->erase("peak_bytes");
      (*plan)["peak_by_owner"].erase("gradients");
    }
    CHECK(many == few);
  }
}
