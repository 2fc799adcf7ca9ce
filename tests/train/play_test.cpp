// Checkpoints of runs on a token dataset: its vocabulary is in the checkpoint, so the dataset need
// not be there, and the keys of [data] hold as they do for text.
#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

std::string text(int lines, int from) {
  std::string t;
  for (int i = from; i < from + lines; ++i) t += concat("The sentence with the number ", i, ".\n");
  return t;
}

std::string recipe(const std::string& data) {
  return concat(
      "[model]\nwidth = 16\nlayers = 1\npattern = [\"attention\"]\ncontext = 16\n"
      "[attention]\nheads = 2\n[data]\npacked = true\n",
      data, "\n[train]\nsteps = 3\nbatch = 2\nout = \"run\"\n");
}

// What `weft eval run --data other.txt` prints after training with these [data].
std::string evaluated(const Folder& f, const std::string& data) {
  f.write("recipe.toml", recipe(data));
  const Ran trained = run_weft(f, {"train", "recipe.toml", "--overwrite"});
  INFO(trained.text);
  REQUIRE(trained.status == 0);
  const Ran ran = run_weft(f, {"eval", "run", "--data", "other.txt"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  return ran.text;
}

}  // namespace

TEST_CASE("play: a run on a dataset is evaluated like one on the text that the dataset holds") {
  const Folder f;
  f.write("text.txt", text(300, 0));
  f.write("other.txt", text(40, 1000));
  REQUIRE(run_weft(f, {"data", "text.txt", "--out", "text.h5"}).status == 0);
  const std::string from_text = evaluated(f, "source = \"text.txt\"");
  CHECK_THAT(from_text, ContainsSubstring("held-out loss"));
  CHECK(evaluated(f, "dataset = \"text.h5\"") == from_text);

  CHECK(run_weft(f, {"eval", "run"}).status == 0);
  std::filesystem::remove(f / "text.h5");
  CHECK(run_weft(f, {"eval", "run", "--data", "other.txt"}).text == from_text);
  CHECK(run_weft(f, {"generate", "run", "--prompt", "The", "--tokens", "4"}).status == 0);
  const Ran gone = run_weft(f, {"eval", "run"});
  CHECK(gone.status == 2);
  CHECK_THAT(gone.text, ContainsSubstring("text.h5"));
}

TEST_CASE("play: a dataset that is no *.h5 is refused where it is named") {
  const Folder f;
  f.write("text.txt", text(300, 0));
  f.write("recipe.toml", recipe("dataset = \"text.txt\""));
  const Ran ran = run_weft(f, {"train", "recipe.toml"});
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("recipe.toml:10") && ContainsSubstring("weft data"));
}
