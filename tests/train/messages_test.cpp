// Bad input through the program: one clear message, exit status 2, nothing lost.
#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;

namespace {

const std::string kRecipe = kSmallModel + R"([train]
steps = 4
batch = 2
checkpoint_every = 2
out = "run"
)";

// The recipe with one line replaced (or, with `from` empty, added at the end).
std::string recipe(const std::string& from = "", const std::string& to = "") {
  std::string r = kRecipe;
  if (from.empty()) return r + to + "\n";
  const size_t at = r.find(from);
  REQUIRE(at != std::string::npos);
  return r.replace(at, from.size(), to);
}

Ran train(const Folder& f, const std::string& text, std::vector<std::string> more = {}) {
  f.write("recipe.toml", text);
  if (!std::filesystem::exists(f / "text.txt")) f.write("text.txt", small_text());
  more.insert(more.begin(), {"train", "recipe.toml"});
  return run_weft(f, more);
}

void refused(const Ran& ran, const std::vector<std::string>& says) {
  INFO(ran.text);
  CHECK(ran.status == 2);
  for (const std::string& s : says) CHECK_THAT(ran.text, ContainsSubstring(s));
  CHECK_THAT(ran.text, !ContainsSubstring("terminate"));
}

}  // namespace

TEST_CASE("messages: an unknown key names file, line, column and the nearest key") {
  const Folder f;
  refused(train(f, recipe("heads = 2", "haeds = 2")),
          {"recipe.toml:7:1", "haeds", "heads", "[attention]"});
  refused(train(f, recipe("batch = 2", "bacth = 2")), {"recipe.toml:12", "batch"});
  refused(train(f, recipe("", "[optimiser]\nlr = 1")), {"optimiser", "optimizer"});
  CHECK_FALSE(std::filesystem::exists(f / "run/checkpoints"));
}

TEST_CASE("messages: wrong types, values and shapes are refused with their place") {
  const Folder f;
  refused(train(f, recipe("width = 16", "width = \"wide\"")), {"recipe.toml:2", "width"});
  refused(train(f, recipe("steps = 4", "steps = 0")), {"recipe.toml:11", "at least 1"});
  refused(train(f, recipe("heads = 2", "heads = 3")), {"recipe.toml:7", "heads"});
  refused(train(f, recipe("[\"attention\"]", "[\"atention\"]")), {"recipe.toml:4", "attention"});
  refused(train(f, "[model\nwidth = 3"), {"recipe.toml:1"});
  refused(train(f, recipe(), {"--set", "train.stepz=3"}), {"--set", "stepz", "steps"});
}

TEST_CASE("messages: a missing, empty or binary text is told apart") {
  const Folder f;
  refused(run_weft(f, {"train", "nowhere.toml"}), {"nowhere.toml"});
  refused(train(f, recipe("text.txt", "nowhere.txt")), {"nowhere.txt"});
  f.write("empty.txt", "");
  refused(train(f, recipe("text.txt", "empty.txt")), {"empty.txt", "empty"});
  f.write("binary.txt", std::string("\x7f"
                                    "ELF\0\1\2\3\0\0\0",
                                    11) +
                            std::string(4000, '\0'));
  refused(train(f, recipe("text.txt", "binary.txt")), {"binary.txt", "binary"});
}

TEST_CASE("messages: a run that lies already is neither overwritten nor mistaken") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const std::string before = f.read("run/metrics.jsonl");
  refused(train(f, recipe()), {"--resume", "--overwrite"});
  CHECK(f.read("run/metrics.jsonl") == before);
  CHECK(train(f, recipe(), {"--resume"}).status == 0);
  refused(train(f, recipe("width = 16", "width = 32"), {"--resume"}),
          {"another recipe", "model.width"});
}

TEST_CASE("messages: --overwrite keeps the old run until the new one can begin") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const std::string path = "run/checkpoints/step-0000000004.h5", good = f.read(path);
  REQUIRE(!good.empty());
  refused(train(f, recipe("heads = 2", "heads = 3"), {"--overwrite"}), {"recipe.toml:7"});
  refused(train(f, recipe("text.txt", "nowhere.txt"), {"--overwrite"}), {"nowhere.txt"});
  refused(train(f, recipe(), {"--overwrite", "--set", "train.stepz=3"}), {"stepz"});
  CHECK(f.read(path) == good);
  CHECK(train(f, recipe(), {"--overwrite", "--set", "train.steps=2"}).status == 0);
  CHECK_FALSE(std::filesystem::exists(f / path));
}

TEST_CASE("messages: an older checkpoint is gone on from only where the later ones are given up") {
  const Folder f;
  REQUIRE(train(f, recipe(), {"--set", "train.steps=6", "--set", "train.keep=3"}).status == 0);
  const std::string newest = f.read("run/checkpoints/step-0000000006.h5");
  const std::vector<std::string> from_2{"--resume", "--from", "run/checkpoints/step-0000000002.h5"};
  refused(train(f, recipe(), from_2), {"step-0000000006.h5", "step 2", "--overwrite"});
  CHECK(f.read("run/checkpoints/step-0000000006.h5") == newest);

  auto given_up = from_2;
  given_up.insert(given_up.end(), {"--overwrite", "--set", "train.keep=1"});
  const Ran ran = train(f, recipe(), given_up);  // to step 4
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(std::filesystem::exists(f / "run/checkpoints/step-0000000004.h5"));
  CHECK_FALSE(std::filesystem::exists(f / "run/checkpoints/step-0000000006.h5"));
  const Ran next = train(f, recipe(), {"--resume", "--set", "train.steps=6"});
  CHECK_THAT(next.text, ContainsSubstring("going on from step 4"));

  // Into another folder nothing needs to be given up.
  CHECK(train(f, recipe("\"run\"", "\"fork\""),
              {"--resume", "--from", "run/checkpoints/step-0000000004.h5"})
            .status == 0);
}

TEST_CASE("messages: a checkpoint to go on from is refused without --resume, and nothing is lost") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const std::string path = "run/checkpoints/step-0000000004.h5", good = f.read(path);
  for (const std::vector<std::string>& more :
       std::vector<std::vector<std::string>>{{}, {"--overwrite"}, {"--set", "train.out=other"}}) {
    for (const char* from : {path.c_str(), "none.h5"}) {
      std::vector<std::string> words{"--from", from};
      words.insert(words.end(), more.begin(), more.end());
      refused(train(f, recipe(), words), {"--from needs --resume"});
    }
  }
  CHECK(f.read(path) == good);
  CHECK_FALSE(std::filesystem::exists(f / "other"));
}

TEST_CASE("messages: damaged and foreign checkpoints name the file and the tensor") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const std::string path = f / "run/checkpoints/step-0000000004.h5";
  const std::string good = f.read("run/checkpoints/step-0000000004.h5");
  const auto generate = [&] {
    return run_weft(f, {"generate", "run/checkpoints/step-0000000004.h5", "--prompt", "a"});
  };
  REQUIRE(generate().status == 0);
  f.write("run/checkpoints/step-0000000004.h5", good.substr(0, good.size() / 2));
  refused(generate(), {"step-0000000004.h5"});
  f.write("run/checkpoints/step-0000000004.h5", "this is no HDF5 file at all");
  refused(generate(), {"step-0000000004.h5", "HDF5"});
  refused(run_weft(f, {"generate", "run/nothing.h5", "--prompt", "a"}), {"run/nothing.h5"});
  // A flipped bit in the middle of a tensor.
  std::string bad = good;
  const size_t at = bad.find("parameters");
  REQUIRE(at != std::string::npos);
  bool named = false;
  for (size_t place = bad.size() / 8; place < bad.size() && !named; place += bad.size() / 16) {
    bad = good;
    bad[place] = static_cast<char>(bad[place] ^ 0x10);
    f.write("run/checkpoints/step-0000000004.h5", bad);
    const Ran ran = train(f, recipe(), {"--resume", "--set", "train.steps=6"});
    if (ran.status == 0) continue;
    INFO(ran.text);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring("step-0000000004.h5"));
    named = ran.text.find("tensor") != std::string::npos;
  }
  CHECK(named);
}

TEST_CASE(
    "messages: a checkpoint that finds no room is told, the run goes on, the last one stays") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const std::string good = f.read("run/checkpoints/step-0000000004.h5");
  REQUIRE(good.size() > 40000);
  const Ran ran = run_weft(f, {"train", "recipe.toml", "--resume", "--set", "train.steps=6"}, 0,
                           SIGKILL, 40000);
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("step 6/6"));
  CHECK_THAT(ran.text, ContainsSubstring("checkpoint not saved"));
  CHECK_THAT(ran.text, ContainsSubstring("step-0000000004.h5"));
  CHECK(f.read("run/checkpoints/step-0000000004.h5") == good);
  CHECK_FALSE(std::filesystem::exists(f / "run/checkpoints/step-0000000006.h5"));
}

TEST_CASE("messages: a loss that is not finite names the step, the operation and the layer") {
  const Folder f;
  const Ran ran = train(f, recipe("", "[optimizer]\nlr = 1e3\nclip = 0.0\n[schedule]\nwarmup = 0"),
                        {"--set", "train.steps=200", "--set", "optimizer.weight_decay=1000",
                         "--set", "train.checkpoint_every=1"});
  refused(ran, {"step ", "is not finite", "of ", " in ", "Last good checkpoint"});
}

TEST_CASE("messages: a folder that cannot be written is told before the first step") {
  const Folder f;
  f.write("file", "");
  refused(train(f, recipe("\"run\"", "\"file/run\"")), {"file/run", "train.out"});
  refused(train(f, recipe("\"run\"", "\"/proc/weft/run\"")), {"/proc/weft/run"});
}

TEST_CASE("messages: a text longer than the recipe's context is refused by generate") {
  const Folder f;
  REQUIRE(train(f, recipe()).status == 0);
  const Ran ran = run_weft(f, {"generate", "run", "--prompt", std::string(40, 'x')});
  refused(ran, {"context", "16"});
  CHECK_THAT(ran.text, !ContainsSubstring("xxx"));  // nothing is written before
}

TEST_CASE("messages: help is one text, however it is asked for") {
  const Folder f;
  const Ran help = run_weft(f, {"--help"}), alone = run_weft(f, {});
  CHECK(help.status == 0);
  CHECK(alone.status == 2);
  CHECK(alone.text == help.text);
  for (const auto& words : {std::vector<std::string>{"help"}, {"help", "help"}}) {
    const Ran ran = run_weft(f, words);
    CHECK(ran.status == 0);
    CHECK(ran.text == help.text);
  }
  for (const char* verb :
       {"train", "eval", "generate", "inspect", "data", "import", "export", "replay", "logits",
        "gradcheck", "cases", "judge", "op", "bench", "doctor", "version"}) {
    const Ran ran = run_weft(f, {"help", verb});
    INFO(verb << ran.text);
    CHECK(ran.status == 0);
    CHECK(ran.text == run_weft(f, {verb, "--help"}).text);
    CHECK_THAT(ran.text, ContainsSubstring("xample"));
    CHECK_THAT(help.text, ContainsSubstring(verb));
  }
  CHECK(run_weft(f, {"help", "op", "delta"}).text == run_weft(f, {"op", "delta", "--help"}).text);
  const Ran version = run_weft(f, {"--version"});
  CHECK(version.status == 0);
  CHECK(version.text == run_weft(f, {"version"}).text);
}

TEST_CASE("messages: an unknown verb or flag is told with the nearest") {
  const Folder f;
  refused(run_weft(f, {"help", "trian"}), {"trian", "\"train\""});
  refused(run_weft(f, {"verison"}), {"\"version\""});
  refused(run_weft(f, {"train", "r.toml", "--ovewrite"}),
          {"train", "--ovewrite", "\"--overwrite\""});
}

TEST_CASE("messages: a file that is not HDF5 is told with what it should be, in grammar") {
  const Folder f;
  f.write("text.h5", "this is text");
  refused(run_weft(f, {"op", "delta", "text.h5", "out.h5"}), {"expected an operation file"});
  refused(run_weft(f, {"op", "delta", ".", "out.h5"}), {"expected an operation file"});
  refused(run_weft(f, {"eval", "text.h5"}), {"expected a checkpoint"});
}

TEST_CASE("messages: a prompt that leaves no room for a sample is told at the start") {
  const Folder f;
  const Ran ran = train(f, recipe("", "[sample]\nprompt = \"sixteen bytes and more\"\n"));
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text,
             ContainsSubstring("sample.prompt has 22 tokens") && !ContainsSubstring("--- sample"));
  CHECK(ran.text.find("sample.prompt has") < ran.text.find("step 4/4"));
}

TEST_CASE("messages: the command line's own mistakes exit with 2 and name the verb") {
  const Folder f;
  refused(run_weft(f, {"trian"}), {"trian", "\"train\""});
  CHECK(run_weft(f, {}).status == 2);
  CHECK(run_weft(f, {"train"}).status == 2);
  CHECK(run_weft(f, {"--help"}).status == 0);
  for (const char* verb : {"train", "eval", "generate", "gradcheck", "cases", "judge", "op",
                           "bench", "inspect", "data"}) {
    const Ran ran = run_weft(f, {verb, "--help"});
    CHECK(ran.status == 0);
    CHECK_THAT(ran.text, ContainsSubstring("xample"));
  }
}
