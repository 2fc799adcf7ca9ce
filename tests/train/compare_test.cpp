// `weft compare`: recipes on the same data, for as many tokens, from the same seeds.
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/train/markup.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;

namespace {

std::string recipe_of(const std::string& mixer, const std::string& batch) {
  return "[model]\nwidth = 16\nlayers = 1\npattern = [\"" + mixer + "\"]\ncontext = 16\n[" + mixer +
         "]\nheads = 2\n[data]\nsource = \"text.txt\"\n[sample]\ntokens = 0\n[train]\n"
         "device = \"cpu\"\nsteps = 6\nlog_every = 1\neval_batches = 1\nbatch = " +
         batch + "\n";
}

void write_recipes(const Folder& f) {
  f.write("text.txt", small_text());
  f.write("a.toml", recipe_of("attention", "2"));
  f.write("b.toml", recipe_of("delta", "3"));
}

Ran compare(const Folder& f, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"compare", "a.toml", "b.toml", "--out", "all"});
  return run_weft(f, more);
}

}  // namespace

TEST_CASE("compare: every recipe sees as many tokens, from each seed, in a run of its own") {
  const Folder f;
  write_recipes(f);
  says(compare(f, {"--seeds", "2"}), 0, {"run 4 of 4: b, seed 2", "left ---"});
  const auto j = nlohmann::json::parse(f.read("all/compare.json"));
  CHECK(j["made_by"] == "weft compare");
  REQUIRE(j["recipes"].size() == 2);
  CHECK(j["recipes"][0]["steps"] == 6);
  CHECK(j["recipes"][1]["steps"] == 4);
  for (const auto& r : j["recipes"]) {
    CHECK(r["tokens"] == 6 * 2 * 16);
    CHECK(r["decode_tokens_per_second"] > 0);
    CHECK(r["state_bytes"] > 0);
    REQUIRE(r["runs"].size() == 2);
    const double one = r["runs"][0]["eval_loss"], two = r["runs"][1]["eval_loss"];
    CHECK(one != two);
    CHECK(r["eval_loss"]["mean"].get<double>() == Approx((one + two) / 2));
    CHECK(r["eval_loss"]["least"] == std::min(one, two));
    CHECK(r["eval_loss"]["most"] == std::max(one, two));
  }
  const std::string page = f.read("all/compare.html");
  CHECK(markup_fault(page) == "");
  CHECK(count_of(page, "class=\"chart\"") == 2 * 3 + 2);
  // A run of its own is the same run.
  says(run_weft(f, {"train", "b.toml", "--set", "train.steps=4", "--set", "train.seed=2"}), 0, {});
  const auto hash = [&](const std::string& path) {
    const std::string text = f.read(path);
    return text.substr(text.rfind("\"hash\""), 26);
  };
  CHECK(hash("all/b-seed-2/metrics.jsonl") == hash("runs/b/metrics.jsonl"));
}

TEST_CASE("compare: finished runs stay, and a run under way is gone on with") {
  const Folder f;
  write_recipes(f);
  const std::vector<std::string> early = {
      "train", "b.toml",       "--set", "train.out=all/b-seed-1",   "--set", "train.steps=4",
      "--set", "train.seed=1", "--set", "train.checkpoint_every=1", "--set", "train.keep=9"};
  says(run_weft(f, early), 0, {});
  for (const char* late : {"3", "4"})
    std::filesystem::remove(
        f / (std::string("all/b-seed-1/checkpoints/step-000000000") + late + ".h5"));
  std::filesystem::remove(f / "all/b-seed-1/best.h5");
  says(compare(f), 0, {"step 3/4", "run 2 of 2: b, seed 1"});
  const std::string first = f.read("all/compare.json"),
                    metrics = f.read("all/a-seed-1/metrics.jsonl");
  const Ran again = compare(f);
  says(again, 0, {"a, seed 1, finished before", "b, seed 1, finished before"});
  CHECK(f.read("all/a-seed-1/metrics.jsonl") == metrics);
  CHECK(nlohmann::json::parse(first)["recipes"][1]["runs"] ==
        nlohmann::json::parse(f.read("all/compare.json"))["recipes"][1]["runs"]);
}

TEST_CASE("compare: what cannot be compared is refused before a run begins") {
  const Folder f;
  write_recipes(f);
  f.write("other.txt", small_text());
  says(compare(f, {"--seeds", "0"}), 2, {"--seeds 0"});
  says(run_weft(f, {"compare", "a.toml", "a.toml", "--out", "all"}), 2, {"the same name, \"a\""});
  std::string c = recipe_of("delta", "2");
  c.replace(c.find("text.txt"), 8, "other.txt");
  f.write("c.toml", c);
  says(run_weft(f, {"compare", "a.toml", "c.toml", "--out", "all"}), 2,
       {"c.toml: data.source is", "other.txt", "the same data", "--set"});
  CHECK_FALSE(std::filesystem::exists(f / "all"));
}

TEST_CASE("compare: a folder that holds another run is not mixed with this one") {
  const Folder f;
  write_recipes(f);
  says(compare(f), 0, {});
  says(compare(f, {"--tokens", "64"}), 2, {"holds a run of 6 steps, expected 2", "--overwrite"});
  says(compare(f, {"--set", "optimizer.lr=0.5"}), 2, {"optimizer.lr"});
  f.write("all/compare.html", "mine");
  says(compare(f), 2, {"all/compare.html: is there"});
  CHECK(f.read("all/compare.html") == "mine");
  // Every micro-batch of a step counts.
  says(compare(f, {"--tokens", "128", "--overwrite", "--set", "train.accumulate=2"}), 0,
       {"all/compare.html"});
  const auto j = nlohmann::json::parse(f.read("all/compare.json"));
  CHECK(j["recipes"][0]["steps"] == 2);
  CHECK(j["recipes"][0]["tokens"] == 128);
  CHECK(j["recipes"][1]["steps"] == 2);
  CHECK(j["recipes"][1]["tokens"] == 192);
}

TEST_CASE("compare: files of settings make a table of recipes and tasks") {
  const Folder f;
  write_recipes(f);
  f.write("recall.toml",
          "[data]\ntask = \"mqar\"\nvocabulary = 16\npairs = [1, 2]\ntest_examples = 20\n");
  f.write("par.toml", "[data]\ntask = \"parity\"\n[train]\nsteps = 3\n[model]\ncontext = 8\n");
  const Ran ran = compare(f, {"--with", "recall.toml", "--with", "par.toml", "--seeds", "2"});
  says(ran, 0,
       {"run 5 of 8: a on par, seed 1", "| recipe | recall | recall: 1 | recall: 2 | par |"});
  const auto table = nlohmann::json::parse(f.read("all/table.json"));
  REQUIRE(table["columns"].size() == 4);
  CHECK(table["columns"][1]["name"] == "recall: 1");
  CHECK(table["columns"][0]["tokens"] == 6 * 2 * 16);
  CHECK(table["columns"][3]["tokens"] == 3 * 2 * 8);
  const auto one = nlohmann::json::parse(f.read("all/recall/compare.json"));
  for (size_t row = 0; row < 2; ++row) {
    const auto& cells = table["recipes"][row]["cells"];
    REQUIRE(cells.size() == 4);
    CHECK(cells[0]["mean"] == one["recipes"][row]["accuracy"]["mean"]);
    CHECK(cells[0]["parameters"] == one["recipes"][row]["parameters"]);
    // 10 examples of one pair and 10 of two make the answers of all 20.
    CHECK(cells[0]["mean"].get<double>() ==
          Approx((cells[1]["mean"].get<double>() + 2 * cells[2]["mean"].get<double>()) / 3));
  }
  CHECK(markup_fault(f.read("all/table.html")) == "");
  CHECK(std::filesystem::exists(f / "all/par/b-seed-2"));
  // The run is that of the recipe with the same settings.
  says(run_weft(f, {"train", "b.toml", "--set", "data.task=parity", "--set", "train.steps=2",
                    "--set", "model.context=8"}),
       0, {});
  const auto hash = [&](const std::string& path) {
    const std::string text = f.read(path);
    return text.substr(text.rfind("\"hash\""), 26);
  };
  CHECK(hash("all/par/b-seed-1/metrics.jsonl") == hash("runs/b/metrics.jsonl"));
}

TEST_CASE("compare: a file of settings that does not fit is told with its name") {
  const Folder f;
  write_recipes(f);
  f.write("none.toml", "# nothing\n");
  f.write("wrong.toml", "[data]\ntask = \"parity\"\n[train]\nstepz = 3\n");
  f.write("lists.toml", "[[data]]\ntask = \"parity\"\n");
  const auto with = [&](const std::string& name) { return compare(f, {"--with", name}); };
  says(with("none.toml"), 2, {"none.toml: holds no settings"});
  says(with("wrong.toml"), 2, {"wrong.toml: its settings do not fit", "stepz", "steps"});
  says(with("lists.toml"), 2, {"lists.toml: [[data]] is a list of tables"});
  says(compare(f, {"--with", "none.toml", "--with", "missing.toml"}), 2, {"none.toml"});
  // A setting of the command line goes before one of a file.
  f.write("rate.toml", "[optimizer]\nlr = 0.1\n");
  says(compare(f, {"--with", "rate.toml", "--set", "optimizer.lr=-1"}), 2, {"rate.toml", "lr"});
  for (const char* folder : {"sub", "right"}) std::filesystem::create_directory(f / folder);
  f.write("sub/wrong.toml", "[train]\nsteps = 3\n");
  f.write("right/wrong.toml", "[train]\nsteps = 3\n");
  says(compare(f, {"--with", "sub/wrong.toml", "--with", "right/wrong.toml"}), 2,
       {"another file of settings is called wrong"});
  CHECK_FALSE(std::filesystem::exists(f / "all"));
}

TEST_CASE("compare: what --set says counts more than a file of settings") {
  const Folder f;
  write_recipes(f);
  f.write("par.toml", "[data]\ntask = \"parity\"\n[train]\nsteps = 1\n[model]\ncontext = 8\n");
  says(compare(f, {"--with", "par.toml", "--set", "data.task=parrot"}), 2, {"\"parrot\""});
  says(compare(f, {"--set", "data.task=parrot", "--with", "par.toml"}), 2, {"\"parrot\""});
}
