// Training goes on from an import where transformers' own would (tests/oracles/make_training.py).
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/file.h"
#include "tests/paths.h"
#include "tests/train/said.h"

using namespace weft;
using namespace weft::tests;

namespace {

using nlohmann::json;

const json& oracle() {
  static const json all = json::parse(read_file(source_path("tests/oracles/training.json")));
  return all;
}

// The losses of a run's steps, in their order.
std::vector<double> losses(const Folder& f) {
  std::vector<double> all;
  std::istringstream lines(f.read("run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json entry = json::parse(line);
    if (entry.contains("loss") && entry.contains("lr")) all.push_back(entry.at("loss"));
  }
  return all;
}

Ran train(const Folder& f, const std::vector<std::string>& more) {
  std::vector<std::string> words{"train", "m.toml", "--device", "cpu"};
  for (const json& setting : oracle().at("settings"))
    words.insert(words.end(), {"--set", setting.get<std::string>()});
  words.insert(words.end(), {"--set", "train.out=run", "--set", "train.log_every=1"});
  if (f.read("m.toml").find("[moe]") != std::string::npos)  // transformers has none as a standard
    words.insert(words.end(), {"--set", "moe.balance_loss=0"});
  words.insert(words.end(), more.begin(), more.end());
  return run_weft(f, words);
}

}  // namespace

TEST_CASE("import: ten steps from an import have the losses that transformers has") {
  for (const auto& [name, wanted] : oracle().at("losses").items()) {
    INFO(name);
    const Folder f;
    const std::string folder = source_path("tests/oracles/hub/" + name);
    done(run_weft(f, {"import", folder, "m.h5", "--recipe", "m.toml", "--dtype", "f64"}));
    done(train(f, {"--begin", "m.h5"}));
    const std::vector<double> got = losses(f);
    REQUIRE(got.size() == wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      INFO("step " << i + 1 << ": " << got[i] << ", expected " << wanted[i]);
      CHECK(std::abs(got[i] - wanted[i].get<double>()) < 1e-6);
    }
  }
}

TEST_CASE("import: a run from an import stops, goes on bit by bit, and is exported") {
  const Folder f;
  const std::string folder = source_path("tests/oracles/hub/qwen3_next");
  done(run_weft(f, {"import", folder, "m.h5", "--recipe", "m.toml", "--dtype", "f64"}));
  done(train(f, {"--begin", "m.h5"}));
  const std::vector<double> whole = losses(f);
  std::filesystem::remove_all(f / "run");
  done(train(f, {"--begin", "m.h5", "--set", "train.steps=4"}));
  done(train(f, {"--resume"}));
  CHECK(losses(f) == whole);
  done(run_weft(f, {"export", "run", "out", "--as", "qwen3_next"}));
  done(run_weft(f, {"import", "out", "again.h5"}));
}
