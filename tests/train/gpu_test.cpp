// Runs on a GPU: as the CPU's within the rounding, bit for bit after a kill, and from one device to
// the other. Without a GPU these say that they were skipped, but for what the program then says.
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/device.h"
#include "core/error.h"
#include "core/random.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

constexpr const char* kRecipe = R"(
[model]
width = 64
layers = 4
pattern = ["gated_delta", "attention", "gated_linear", "mamba"]
context = 96
[gated_delta]
heads = 2
[attention]
heads = 2
[gated_linear]
heads = 2
[data]
source = "text.txt"
[train]
steps = 24
batch = 8
eval_batches = 2
checkpoint_every = 4
log_every = 1
out = "run"
[schedule]
type = "constant"  # so that a run may be told to end early
[sample]
tokens = 0
)";

void prepare(const Folder& f) {
  std::string t;
  const Random random(5);
  for (uint64_t i = 0; i < 3000; ++i)
    t += concat("line ", random.below(900, i), i % 3 ? " of a small text\n" : " and another\n");
  f.write("recipe.toml", kRecipe);
  f.write("text.txt", t);
}

Ran train(const Folder& f, const std::string& out, std::vector<std::string> more) {
  std::vector<std::string> words = {"train", "recipe.toml", "--set", "train.out=" + out};
  words.insert(words.end(), more.begin(), more.end());
  return run_weft(f, words);
}

std::vector<double> losses(const Folder& f, const std::string& out) {
  std::vector<double> list;
  std::istringstream lines(f.read(out + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    if (j.contains("loss")) list.push_back(j["loss"].get<double>());
  }
  return list;
}

std::string last_hash(const Folder& f, const std::string& out) {
  std::string hash;
  std::istringstream lines(f.read(out + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    if (j.contains("hash")) hash = j["hash"].get<std::string>();
  }
  return hash;
}

double widest_gap(const std::vector<double>& a, const std::vector<double>& b) {
  double gap = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    gap = std::isfinite(a[i] / b[i]) ? std::max(gap, std::abs(a[i] - b[i]) / b[i]) : INFINITY;
  return gap;
}

}  // namespace

TEST_CASE("gpu: losses in f32 and in bf16 lie within 1 % of the CPU's", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Folder f;
  prepare(f);
  const Ran cpu = train(f, "cpu", {"--device", "cpu"});
  INFO(cpu.text);
  REQUIRE(cpu.status == 0);
  for (const char* dtype : {"f32", "bf16"}) {
    const Ran gpu = train(f, dtype, {"--device", "cuda", "--set", concat("train.dtype=", dtype)});
    INFO(gpu.text);
    REQUIRE(gpu.status == 0);
    CHECK(widest_gap(losses(f, dtype), losses(f, "cpu")) < 0.01);
  }
}

TEST_CASE("gpu: train.tf32 rounds products of f32 on a GPU, and changes nothing elsewhere",
          "[cuda]") {
  const Folder f;
  prepare(f);
  const auto hash = [&](const std::string& device, const std::string& dtype, bool tf32) {
    const std::string out = concat(device, dtype, tf32);
    const Ran ran =
        train(f, out,
              {"--device", device, "--set", "train.steps=4", "--set", concat("train.dtype=", dtype),
               "--set", concat("train.tf32=", tf32 ? "true" : "false")});
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    return last_hash(f, out);
  };
  CHECK(hash("cpu", "f32", true) == hash("cpu", "f32", false));
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  CHECK(hash("cuda", "bf16", true) == hash("cuda", "bf16", false));
  CHECK(hash("cuda", "f32", true) != hash("cuda", "f32", false));
  CHECK(widest_gap(losses(f, "cudaf321"), losses(f, "cudaf320")) < 0.01);
}

TEST_CASE("gpu: a run killed and resumed ends in the same bits", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Folder f;
  prepare(f);
  const Ran whole = train(f, "whole", {"--device", "cuda"});
  INFO(whole.text);
  REQUIRE(whole.status == 0);
  CHECK_THAT(whole.text, ContainsSubstring("each step one CUDA graph"));
  for (const char* stop : {"5", "9", "14"}) {
    // Ends at a step that is no multiple of the checkpoints' and goes on from the last of them.
    const std::string out = concat("stopped", stop);
    REQUIRE(train(f, out, {"--device", "cuda", "--set", concat("train.steps=", stop)}).status == 0);
    std::filesystem::remove(
        f / concat(out, "/checkpoints/step-00000000", stop[1] ? "" : "0", stop, ".h5"));
    std::filesystem::remove(f / concat(out, "/best.h5"));  // it may be of that step
    const Ran rest = train(f, out, {"--device", "cuda", "--resume"});
    INFO(rest.text);
    REQUIRE(rest.status == 0);
    CHECK(last_hash(f, out) == last_hash(f, "whole"));
  }
}

TEST_CASE("gpu: steps with packed documents and with masks of blocks are one graph, too",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Folder f;
  prepare(f);
  const std::vector<std::vector<std::string>> kinds = {
      {"--set", "data.document=line", "--set", "data.packed=true"},
      {"--set", "data.document=line", "--set", "data.packed=true", "--set", "train.accumulate=3",
       "--set", "model.positions=learned"},
      {"--set",
       "model.pattern=[\"block_sparse\", \"gated_delta\", \"attention\", \"gated_linear\", "
       "\"mamba\"]",
       "--set", "block_sparse.heads=2", "--set", "block_sparse.block=8"}};
  for (const std::vector<std::string>& kind : kinds) {
    const auto run = [&](const std::string& out, std::vector<std::string> more) {
      more.insert(more.end(), kind.begin(), kind.end());
      const Ran ran = train(f, out, more);
      INFO(ran.text);
      REQUIRE(ran.status == 0);
      return ran.text;
    };
    run("cpu", {"--device", "cpu", "--overwrite"});
    const std::string said =
        run("f32", {"--device", "cuda", "--set", "train.dtype=f32", "--overwrite"});
    CHECK_THAT(said, ContainsSubstring("each step one CUDA graph"));
    CHECK(widest_gap(losses(f, "f32"), losses(f, "cpu")) < 0.01);
    run("whole", {"--device", "cuda", "--overwrite"});
    run("part", {"--device", "cuda", "--set", "train.steps=8", "--overwrite"});
    run("part", {"--device", "cuda", "--resume"});  // its first step is no graph
    CHECK(last_hash(f, "part") == last_hash(f, "whole"));
  }
}

TEST_CASE("gpu: a checkpoint of either device goes on on the other", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Folder f;
  prepare(f);
  REQUIRE(train(f, "run", {"--device", "cpu", "--set", "train.steps=8"}).status == 0);
  const Ran gpu = train(f, "run", {"--device", "cuda", "--resume", "--set", "train.steps=16"});
  INFO(gpu.text);
  REQUIRE(gpu.status == 0);
  const Ran cpu = train(f, "run", {"--device", "cpu", "--resume"});
  INFO(cpu.text);
  REQUIRE(cpu.status == 0);
  REQUIRE(train(f, "cpu", {"--device", "cpu"}).status == 0);
  CHECK(widest_gap(losses(f, "run"), losses(f, "cpu")) < 0.01);
  const Ran text =
      run_weft(f, {"generate", "run", "--prompt", "line ", "--tokens", "5", "--device", "cuda"});
  INFO(text.text);
  CHECK(text.status == 0);
}

TEST_CASE("gpu: the benchmark times shapes of operations with masks, ids and positions", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Folder f;
  const Ran r = run_weft(f, {"bench", "attention B32", "block_sparse", "rotary", "embedding",
                             "--device", "cuda", "--budget", "0.001", "--json"});
  INFO(r.text);
  CHECK(r.status == 0);
  for (const char* name : {"attention B32", "block_sparse B1", "rotary B4", "embedding R32768"})
    CHECK_THAT(r.text, ContainsSubstring(concat("{\"name\":\"", name)));
}

TEST_CASE("gpu: asked for where there is none, the program says so in one line") {
  if (cuda_device_count() > 0) return;
  const Folder f;
  prepare(f);
  const Ran ran = train(f, "run", {"--device", "cuda"});
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("device cuda:0: "));
  CHECK(std::count(ran.text.begin(), ran.text.end(), '\n') == 1);
  CHECK_FALSE(std::filesystem::exists(f / "run"));
}
