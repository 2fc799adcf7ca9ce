// Damaged checkpoints through the program: told, with exit status 2, and never another result.
#include "train/checkpoint.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/catch.h"
#include "tests/message.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;

namespace {

const std::string kHeads = "heads = 2\n";
const std::string kRecipe =
    std::string(kSmallModel).insert(kSmallModel.find(kHeads) + kHeads.size(), "window = 16\n") +
    R"([train]
steps = 2
batch = 2
checkpoint_every = 2
out = "run"
[sample]
tokens = 0
)";

// A run of two steps whose recipe is longer than what HDF5 has checksums for.
void prepare(const Folder& f) {
  f.write("text.txt", small_text());
  std::string sources;
  for (int i = 0; i < 250; ++i) {
    const std::string name = concat("a text of many/chapter ", i, ".txt");
    std::filesystem::create_directory(f / "a text of many");
    f.write(name, "one chapter of it\n");
    sources += "\"" + name + "\", ";
  }
  std::string recipe = kRecipe;
  recipe.replace(recipe.find("\"text.txt\""), 10, "[" + sources + "\"text.txt\"]");
  f.write("recipe.toml", recipe);
  const Ran ran = run_weft(f, {"train", "recipe.toml"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  std::filesystem::copy_file(f / "run/best.h5", f / "sound.h5");
}

std::vector<std::vector<std::string>> readers(const std::string& file) {
  return {{"eval", file, "--batches", "1"},
          {"generate", file, "--prompt", "w", "--tokens", "4"},
          {"train", "recipe.toml", "--resume", "--from", file, "--set", "train.steps=3", "--set",
           "train.out=\"other\""}};
}

}  // namespace

TEST_CASE("checkpoint: a flipped bit anywhere is refused by every verb that reads it") {
  const Folder f;
  prepare(f);
  const std::string whole = f.read("sound.h5");
  const size_t recipe = whole.find("window = 16");
  REQUIRE(recipe != std::string::npos);
  for (const size_t at : {size_t{9}, recipe + 10, whole.size() / 2, whole.size() - 1}) {
    std::string bad = whole;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    f.write("bad.h5", bad);
    for (const auto& arguments : readers("bad.h5")) {
      const Ran ran = run_weft(f, arguments);
      INFO(arguments[0] << ", byte " << at << ": " << ran.text);
      CHECK(ran.status == 2);
      CHECK_THAT(ran.text, ContainsSubstring("bad.h5"));
    }
    CHECK(!std::filesystem::exists(f / "other/checkpoints/step-0000000003.h5"));
  }
  for (const auto& arguments : readers("sound.h5")) CHECK(run_weft(f, arguments).status == 0);
}

TEST_CASE("checkpoint: one of an earlier version is read") {
  const Folder f;
  std::filesystem::copy_file(tests::source_path("tests/train/earlier.h5"), f / "earlier.h5");
  const Ran ran = run_weft(f, {"eval", "earlier.h5", "--batches", "1"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text, ContainsSubstring("step 2"));
}

TEST_CASE("checkpoint: a long recipe that no checksum guards is not taken from its file alone") {
  const Folder f;
  write_run(f, std::string(kRecipe));
  REQUIRE(run_weft(f, {"train", "recipe.toml"}).status == 0);
  const std::string earlier = tests::source_path("tests/train/earlier.h5");
  const auto refused = [](const std::string& path, size_t bytes) {
    return message([&] {
      train::require_guarded_recipe(train::open_checkpoint(path),
                                    {.recipe = std::string(bytes, '#')});
    });
  };
  CHECK(refused(earlier, 4096) == "no error");
  CHECK_THAT(refused(earlier, 4097), ContainsSubstring("earlier.h5: nothing guards its recipe") &&
                                         ContainsSubstring("--resume --from"));
  CHECK(refused(f / "run/best.h5", 4097) == "no error");
}

TEST_CASE("checkpoint: a flipped bit in a token dataset is refused by every verb that reads it") {
  const Folder f;
  f.write("text.txt", small_text());
  REQUIRE(run_weft(f, {"data", "text.txt", "--out", "sound.h5"}).status == 0);
  const std::string whole = f.read("sound.h5");
  std::string recipe = kRecipe;
  recipe.replace(recipe.find("source = \"text.txt\""), 19, "dataset = \"bad.h5\"");
  f.write("recipe.toml", recipe);
  const std::vector<std::vector<std::string>> verbs = {{"data", "--describe", "bad.h5"},
                                                       {"train", "recipe.toml"}};
  for (const size_t at : {size_t{40}, whole.find("word 7"), whole.size() - 50, whole.size()}) {
    std::string bad = whole;
    if (at < bad.size()) bad[at] = static_cast<char>(bad[at] ^ 2);
    f.write("bad.h5", bad);
    for (const auto& arguments : verbs) {
      const Ran ran = run_weft(f, arguments);
      INFO(arguments[0] << ", byte " << at << ": " << ran.text);
      CHECK(ran.status == (at < bad.size() ? 2 : 0));
    }
  }
}
