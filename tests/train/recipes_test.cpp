// Every small recipe trains, is resumed in the same bits, and writes. (inspect_test.cpp trains them
// with rows of one text too.)
#include <filesystem>
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
  for (uint64_t i = 0; i < 4000; ++i)
    t += concat("Line ", random.below(9000, i), i % 5 ? " of the text.\n" : ", a longer one.\n");
  return t;
}

// What the run in the folder was at its last step: loss, and a hash of the parameters.
std::string last_step(const Folder& f, const std::string& out) {
  std::istringstream lines(f.read(out + "/metrics.jsonl"));
  std::string last;
  for (std::string line; std::getline(lines, line);) {
    const auto step = nlohmann::json::parse(line);
    if (step.contains("loss")) last = concat(step["step"], " ", step["loss"], " ", step["hash"]);
  }
  return last;
}

}  // namespace

TEST_CASE(
    "recipes: each trains packed documents, resumes in the same bits and goes on with a text") {
  const Folder f;
  f.write("text.txt", text());
  int recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(source_path("recipes"))) {
    const std::string name = entry.path().stem().string();
    if (entry.path().extension() != ".toml" || name.starts_with("mqar")) continue;
    const auto train = [&](const std::string& out, int steps, bool resume) {
      std::vector<std::string> arguments{"train", entry.path().string()};
      std::vector<std::string> settings{
          "data.source=text.txt", "data.document=line",     "data.packed=true",
          "model.context=32",     "train.batch=1",          "train.eval_batches=1",
          "train.log_every=1",    "schedule.type=constant", "schedule.warmup=0",
          "sample.tokens=0",      "train.out=" + out,       concat("train.steps=", steps)};
      for (const std::string& s : settings) {
        arguments.emplace_back("--set");
        arguments.push_back(s);
      }
      if (resume) arguments.emplace_back("--resume");
      const Ran ran = run_weft(f, arguments);
      INFO(name << "\n" << ran.text);
      REQUIRE(ran.status == 0);
      return last_step(f, out);
    };
    INFO(name);
    const std::string whole = train(name + "-whole", 2, false);
    CHECK(whole.starts_with("2 "));
    CHECK(train(name, 1, false).starts_with("1 "));
    CHECK(train(name, 2, true) == whole);
    const Ran written = run_weft(f, {"generate", name, "--prompt", "Line ", "--tokens", "9"});
    INFO(written.text);
    CHECK(written.status == 0);
    ++recipes;
  }
  CHECK(recipes > 15);
}

TEST_CASE("recipes: a router resumes in the same bits in every phase, none beyond its plan") {
  const Folder f;
  f.write("text.txt", text());
  const std::string recipe = source_path("recipes/router.toml");
  const auto arguments = [&](const std::string& verb, const std::string& out, int soft, int steps) {
    std::vector<std::string> list{verb, recipe};
    for (const std::string& s :
         {std::string("data.source=text.txt"), std::string("model.context=64"),
          std::string("train.batch=2"), std::string("train.eval_batches=1"),
          std::string("train.log_every=1"), std::string("sample.tokens=0"),
          std::string("schedule.type=constant"), std::string("schedule.warmup=0"),
          concat("router.soft_steps=", soft), concat("router.anneal_steps=", soft / 2),
          "train.out=" + out, concat("train.steps=", steps)})
      list.insert(list.end(), {"--set", s});
    return list;
  };
  const auto train = [&](const std::string& out, int soft, int steps, bool resume) {
    std::vector<std::string> list = arguments("train", out, soft, steps);
    if (resume) list.emplace_back("--resume");
    const Ran ran = run_weft(f, list);
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    return last_step(f, out);
  };
  const std::string whole = train("whole", 2, 5, false);  // hard from step 3 on
  CHECK(whole.starts_with("5 "));
  for (const int at : {1, 2, 3, 4}) {
    INFO("stopped after " << at);
    const std::string out = concat("stopped-", at);
    train(out, 2, at, false);
    CHECK(train(out, 2, 5, true) == whole);
  }
  train("hard", 0, 3, false);
  for (const auto& [out, soft] : {std::pair{"whole", 2}, std::pair{"hard", 0}}) {
    std::vector<std::string> list = arguments("inspect", out, soft, 5);
    list.emplace_back("--json");
    const Ran ran = run_weft(f, list);
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    const auto plan = nlohmann::json::parse(ran.text)["peak_bytes"].get<int64_t>();
    std::istringstream lines(f.read(concat(out, "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      const auto step = nlohmann::json::parse(line);
      if (!step.contains("peak_bytes")) continue;
      const bool planned = soft == 0 || step["step"].get<int>() <= 3;
      INFO(out << ", step " << step["step"]);
      if (planned)
        CHECK(step["peak_bytes"] == plan);
      else
        CHECK(step["peak_bytes"] < plan);
    }
  }
}
