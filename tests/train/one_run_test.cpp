// One run in a folder at a time, and what it leaves there to others.
#include <filesystem>

#include "core/error.h"
#include "core/lock.h"
#include "tests/catch.h"
#include "tests/train/program.h"
#include "tests/train/said.h"
#include "train/run_lock.h"

using namespace weft;
using namespace weft::tests;
namespace fs = std::filesystem;

namespace {

constexpr const char* kRecipe = R"(
[model]
width = 8
layers = 1
pattern = ["attention"]
context = 16
[mlp]
width = 8
[attention]
heads = 2
[data]
source = "text.txt"
[train]
steps = 6
batch = 2
checkpoint_every = 2
eval_every = 2
eval_batches = 1
log_every = 1
keep = 2
out = "run"
[sample]
tokens = 0
)";

void prepare(const Folder& f) {
  f.write("recipe.toml", kRecipe);
  std::string text;
  for (int i = 0; i < 400; ++i) text += concat("line ", i * i % 977, " of a small text\n");
  f.write("text.txt", text);
}

Ran run_train(const Folder& f, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"train", "recipe.toml"});
  return run_weft(f, more);
}

void refused(const Ran& ran, const std::vector<std::string>& parts) {
  INFO(ran.text);
  CHECK(ran.status == 2);
  for (const std::string& part : parts) CHECK_THAT(ran.text, ContainsSubstring(part));
  CHECK(ran.text.find("fault in the program") == std::string::npos);
}

size_t files_in(const std::string& folder) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder)) ++n;
  return n;
}

}  // namespace

TEST_CASE("one run: whoever would change a folder in use is refused, and readers are not") {
  const Folder f;
  prepare(f);
  done(run_train(f));
  fs::create_directory_symlink(f / "run", f / "link");
  const std::string newest = f.read("run/checkpoints/step-0000000006.h5");
  {
    const weft::train::RunLock lock(f / "run");
    const std::string who = concat("process ", ::getpid(), " on host ", host_name());
    const std::string from = "run/checkpoints/step-0000000004.h5";
    refused(run_train(f), {who, "train.out"});
    refused(run_train(f, {"--resume", "--set", "train.steps=8"}), {who});
    refused(run_train(f, {"--overwrite"}), {who});
    refused(run_train(f, {"--resume", "--from", from, "--overwrite"}), {who});
    refused(run_train(f, {"--overwrite", "--set", "train.out=link"}), {who});
    done(run_weft(f, {"generate", "run", "--prompt", "a", "--tokens", "2"}));
    done(run_weft(f, {"eval", "link", "--batches", "1"}));
    done(run_train(f, {"--resume", "--from", from, "--set", "train.out=other"}));
  }
  CHECK(f.read("run/checkpoints/step-0000000006.h5") == newest);
  done(run_train(f, {"--resume", "--set", "train.steps=8"}));
  CHECK_FALSE(fs::exists(f / "run/run.lock"));
}

TEST_CASE("one run: a run that cannot begin leaves no folder and no lock") {
  const Folder f;
  prepare(f);
  refused(run_train(f, {"--resume"}), {"run", "no checkpoint"});
  refused(run_train(f, {"--set", "data.source=\"none.txt\""}), {"none.txt"});
  refused(run_train(f, {"--resume", "--from", "none.h5", "--set", "train.out=a/b"}), {"none.h5"});
  CHECK(files_in(f.path()) == 2);
}

TEST_CASE("one run: a user's files in its folder are never read as checkpoints or removed") {
  const Folder f;
  prepare(f);
  done(run_train(f));
  const char* const copies[] = {"step-good.h5", "step-0000000900 (copy).h5", "step-+000000900.h5",
                                ".step-0000000900.h5", "notes.txt"};
  for (const char* name : copies)
    fs::copy_file(f / "run/checkpoints/step-0000000004.h5", f / concat("run/checkpoints/", name));
  fs::create_directory(f / "run/checkpoints/step-0000000900.h5");
  fs::create_symlink("step-0000000004.h5", f / "run/checkpoints/step-0000000901.h5");
  done(run_train(f, {"--resume", "--set", "train.steps=10", "--set", "train.keep=1"}));
  CHECK(fs::exists(f / "run/checkpoints/step-0000000010.h5"));
  CHECK_FALSE(fs::exists(f / "run/checkpoints/step-0000000008.h5"));
  done(run_train(f, {"--overwrite", "--set", "train.steps=2"}));
  CHECK(files_in(f / "run/checkpoints") == std::size(copies) + 3);
  CHECK(fs::is_symlink(f / "run/checkpoints/step-0000000901.h5"));
}

TEST_CASE("one run: a link of a checkpoint's name is neither written through nor replaced") {
  const Folder f;
  prepare(f);
  fs::create_directories(f / "run/checkpoints");
  f.write("precious.h5", "a user's");
  fs::create_symlink("../../precious.h5", f / "run/checkpoints/step-0000000004.h5");
  const Ran ran = run_train(f);
  done(ran);  // the last state is saved
  CHECK_THAT(ran.text, ContainsSubstring("checkpoint not saved"));
  CHECK_THAT(ran.text, ContainsSubstring("step-0000000004.h5: is no regular file"));
  CHECK(f.read("precious.h5") == "a user's");
  CHECK(fs::is_symlink(f / "run/checkpoints/step-0000000004.h5"));
}

TEST_CASE("one run: best.h5 that could not be renewed is told, spared, and made up for") {
  const Folder f;
  prepare(f);
  fs::create_directories(f / "run/best.h5");
  const Ran hindered = run_train(f, {"--set", "train.keep=1"});
  refused(hindered, {"best.h5 is not renewed", "tries this again"});
  CHECK(hindered.text.find("best.h5 is not renewed") ==
        hindered.text.rfind("best.h5 is not renewed"));
  CHECK(files_in(f / "run/checkpoints") == 1);  // step 6 is the newest and the best
  fs::remove(f / "run/best.h5");
  done(run_train(f, {"--resume", "--set", "train.keep=1"}));
  CHECK(fs::is_regular_file(f / "run/best.h5"));
  CHECK(files_in(f / "run/checkpoints") == 1);
  CHECK(files_in(f / "run") == 4);  // recipe.toml, metrics.jsonl, checkpoints, best.h5
}

TEST_CASE("one run: going on removes what a kill left: a checkpoint too many, files under way") {
  const Folder f;
  prepare(f);
  done(run_train(f));
  const std::string folder = f / "run/checkpoints/";
  fs::copy_file(folder + "step-0000000004.h5", folder + "step-0000000002.h5",
                fs::copy_options::overwrite_existing);
  f.write("run/checkpoints/step-0000000008.h5.tmp-01234567-89abcdef", "half");
  fs::create_hard_link(folder + "step-0000000006.h5", f / "run/best.h5.tmp-01234567-89abcdef");
  done(run_train(f, {"--resume"}));  // the run is finished
  CHECK(files_in(folder) == 2);
  CHECK(files_in(f / "run") == 4);
}

TEST_CASE("one run: --resume leaves nothing changed where it is refused") {
  const Folder f;
  prepare(f);
  done(run_train(f, {"--set", "train.keep=9"}));
  const std::string best = f.read("run/best.h5");
  refused(run_train(f, {"--resume", "--from", "run/checkpoints/step-0000000002.h5"}),
          {"--overwrite"});
  CHECK(f.read("run/best.h5") == best);
}

TEST_CASE("one run: a lone best.h5 of an earlier run is no folder to begin in") {
  const Folder f;
  prepare(f);
  done(run_train(f));
  fs::remove_all(f / "run/checkpoints");
  refused(run_train(f), {"best.h5", "--overwrite"});
  done(run_train(f, {"--overwrite", "--set", "train.steps=1", "--set", "data.held_out=0"}));
  CHECK_FALSE(fs::exists(f / "run/best.h5"));
}

TEST_CASE("one run: lines of metrics that are dropped are counted") {
  const Folder f;
  prepare(f);
  done(run_train(f, {"--set", "train.keep=9"}));
  f.write("run/metrics.jsonl", f.read("run/metrics.jsonl") + "{\"step\":6,\"cut");
  const Ran back =
      run_train(f, {"--resume", "--from", "run/checkpoints/step-0000000004.h5", "--overwrite"});
  done(back);
  CHECK_THAT(back.text,
             ContainsSubstring("metrics.jsonl: dropped 3 lines of later steps and 1 that"));
  CHECK(run_train(f, {"--resume", "--set", "train.steps=8"}).text.find("dropped") ==
        std::string::npos);
}

TEST_CASE("one run: a folder that cannot be looked into is no fault of the program") {
  const Folder f;
  prepare(f);
  fs::create_directory(f / "run");
  fs::create_symlink("checkpoints", f / "run/checkpoints");
  refused(run_train(f), {"run/checkpoints", "symbolic links"});
  refused(run_train(f, {"--resume"}), {"run/checkpoints", "symbolic links"});
  refused(run_weft(f, {"generate", "run", "--prompt", "a"}), {"run/checkpoints"});
  fs::create_symlink("loop", f / "loop");
  const std::string longer(300, 'a');
  for (const std::string& out : {std::string("loop"), longer, std::string("text.txt/run")}) {
    refused(run_train(f, {"--set", "train.out=\"" + out + "\""}), {out});
    refused(run_weft(f, {"generate", out, "--prompt", "a"}), {out});
    refused(run_weft(f, {"data", out, "--out", "x.h5"}), {out});
    CHECK(run_weft(f, {"doctor", "--out", out}).text.find("fault") == std::string::npos);
  }
}
