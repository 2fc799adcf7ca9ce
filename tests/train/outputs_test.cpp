// Where the program writes: onto what is no plain file, onto links, onto its own input, onto a
// standard output that takes nothing.
#include <sys/stat.h>

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;

namespace fs = std::filesystem;

namespace {

// in.h5 with an operation's tensors, and good.h5 with what comes out.
void write_operation(const Folder& f) {
  Hdf5Writer file(f / "in.h5");
  const std::vector<float> values(2 * 5 * 8, 0.25f);
  for (const char* name : {"q", "k", "v"})
    file.tensor(name, Dtype::f32, {1, 5, 2, 8}, values.data());
  file.commit();
  const Ran ran = run_shell(f, "$WEFT op attention in.h5 good.h5");
  INFO(ran.text);
  REQUIRE(ran.status == 0);
}

}  // namespace

TEST_CASE("outputs: a FIFO, a device and an open descriptor are written through and stay") {
  const Folder f;
  write_operation(f);
  const std::string good = f.read("good.h5");
  says(run_shell(f, "mkfifo fifo; cat fifo >a.h5 & $WEFT op attention in.h5 fifo; wait"), 0, {});
  CHECK(f.read("a.h5") == good);
  CHECK(fs::is_fifo(f / "fifo"));
  says(run_shell(f, "$WEFT op attention in.h5 /dev/stdout >b.h5"), 0, {"outputs"});
  CHECK(f.read("b.h5") == good);
  says(run_shell(f, "$WEFT op attention in.h5 /dev/fd/3 3>c.h5"), 0, {});
  CHECK(f.read("c.h5") == good);
  says(run_shell(f, "$WEFT op attention in.h5 /dev/stdout | cat >d.h5"), 0, {});
  CHECK(f.read("d.h5") == good);
  says(run_shell(f, "ln -s /dev/null null; $WEFT op attention in.h5 null"), 0, {});
  CHECK(fs::is_symlink(f / "null"));
  says(run_shell(f, "ln -s /dev/full full; $WEFT op attention in.h5 full"), 2,
       {"full: cannot be written", "No space left"});
  write_small_run(f);
  says(run_shell(f, "$WEFT data text.txt --out /dev/stdout >e.h5; $WEFT data --describe e.h5"), 0,
       {"bytes of text"});
  says(run_shell(f, "$WEFT gradcheck --op rms_norm --json --junit /dev/stdout >j.xml"), 0, {});
  CHECK_THAT(f.read("j.xml"), ContainsSubstring("</testsuite>\n"));
  CHECK(f.read("j.xml").find("</testsuite>") + 13 == f.read("j.xml").size());
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("outputs: a link stays, and the file that it leads to is replaced as a whole") {
  const Folder f;
  write_operation(f);
  const std::string good = f.read("good.h5");
  says(run_shell(f, "mkdir far; echo old >far/o.h5; ln -s far/o.h5 a; ln -s a b; ln -s far/n.h5 c"),
       0, {});
  for (const char* name : {"b", "c"}) {
    says(run_shell(f, concat("$WEFT op attention in.h5 ", name)), 0, {});
    CHECK(fs::is_symlink(f / name));
    CHECK(f.read(name) == good);
  }
  CHECK(fs::is_symlink(f / "a"));
  CHECK(f.read("far/n.h5") == good);
  for (const auto& entry : fs::directory_iterator(f.path()))
    CHECK(entry.path().string().find(".tmp-") == std::string::npos);
  says(run_shell(f, "ln -s y x; ln -s x y; $WEFT op attention in.h5 x"), 2,
       {"x: cannot", "ymbolic"});
}

TEST_CASE("outputs: what is replaced keeps its permissions") {
  const Folder f;
  write_operation(f);
  says(run_shell(f, "echo old >o.h5; chmod 640 o.h5; $WEFT op attention in.h5 o.h5"), 0, {});
  CHECK((fs::status(f / "o.h5").permissions() & fs::perms::mask) == fs::perms(0640));
  CHECK(f.read("o.h5") == f.read("good.h5"));
}

TEST_CASE("outputs: an input is never overwritten, by whatever name") {
  const Folder f;
  write_operation(f);
  write_small_run(f);
  const std::string in = f.read("in.h5"), text = f.read("text.txt"), recipe = f.read("recipe.toml");
  says(run_shell(f, "ln in.h5 hard.h5; ln -s in.h5 soft.h5; mkdir sub; cp text.txt sub/t"), 0, {});
  for (const char* out : {"in.h5", "./in.h5", "sub/../in.h5", "hard.h5", "soft.h5"})
    says(run_shell(f, concat("$WEFT op attention in.h5 ", out)), 2, {"input", "never overwritten"});
  says(run_shell(f, "$WEFT data text.txt --out ./text.txt"), 2, {"never overwritten"});
  says(run_shell(f, "$WEFT data sub --out sub/t"), 2, {"sub/t", "never overwritten"});
  says(run_shell(f, "$WEFT replay recipe.toml --steps 1 --out recipe.toml"), 2, {"never"});
  says(run_shell(f, "$WEFT replay recipe.toml --steps 1 --out text.txt"), 2, {"never"});
  CHECK(f.read("in.h5") == in);
  CHECK(f.read("text.txt") == text);
  CHECK(f.read("sub/t") == text);
  CHECK(f.read("recipe.toml") == recipe);
  // A run whose folder holds its own recipe or text.
  says(run_shell(f, "mkdir run; cp recipe.toml run; $WEFT train run/recipe.toml"), 0, {});
  CHECK(f.read("run/recipe.toml") == recipe);
  says(run_shell(f,
                 "mkdir next; ln text.txt next/metrics.jsonl; $WEFT train recipe.toml "
                 "--set train.out=next"),
       2, {"metrics.jsonl", "train.out"});
  CHECK(f.read("next/metrics.jsonl") == text);
}

TEST_CASE("outputs: a place that takes no file is told before the work") {
  const Folder f;
  write_operation(f);
  write_small_run(f);
  says(run_shell(f, "$WEFT op attention in.h5 nowhere/o.h5"), 2, {"no folder", "nowhere"});
  says(run_shell(f, "$WEFT op attention in.h5 ."), 2, {"folder"});
  says(run_shell(f, "$WEFT op attention in.h5 ''"), 2, {});
  says(run_shell(f, "$WEFT data text.txt --out nowhere/o.h5 --tokenizer sentencepiece"), 2,
       {"no folder"});
  says(run_shell(f, "$WEFT gradcheck --junit nowhere/o.xml"), 2, {"no folder"});
}

TEST_CASE("outputs: a standard output that takes nothing ends every verb with a message and a 2") {
  const Folder f;
  write_operation(f);
  write_small_run(f);
  REQUIRE(run_shell(f, "$WEFT train recipe.toml && $WEFT data text.txt --out d.h5").status == 0);
  for (const char* verb : {"--help",
                           "train --help",
                           "op --list",
                           "op attention --help",
                           "version",
                           "doctor",
                           "inspect recipe.toml",
                           "inspect recipe.toml --json",
                           "data --describe d.h5",
                           "data text.txt --out d.h5",
                           "eval run --batches 1",
                           "generate run --prompt a --tokens 2",
                           "replay recipe.toml --steps 1 --out e.h5",
                           "plot run --csv",
                           "plot run",
                           "show run --text ab --json",
                           "show run --text ab",
                           "op attention in.h5 o.h5",
                           "gradcheck --op rms_norm",
                           "gradcheck --op rms_norm --json",
                           "bench rms_norm --lengths 16 --budget 0 --json"}) {
    INFO(verb);
    REQUIRE(run_shell(f, concat("$WEFT ", verb, " >/dev/null")).status == 0);
    says(run_shell(f, concat("$WEFT ", verb, " >/dev/full")), 2, {"output", "No space left"});
    says(run_shell(f, concat("$WEFT ", verb, " >&-")), 2, {"output", "ile descriptor"});
  }
  for (const char* verb : {"op --list", "inspect recipe.toml --json", "version", "train --help"}) {
    INFO(verb);
    says(run_shell(f, concat("{ sleep 0.2; $WEFT ", verb, "; echo $? >status; } | :")), 0,
         {"output", "Broken pipe"});
    CHECK(f.read("status") == "2\n");
  }
}

TEST_CASE("outputs: descriptors that are closed are not given to files") {
  const Folder f;
  write_operation(f);
  write_small_run(f);
  CHECK(run_shell(f, "$WEFT op attention in.h5 o.h5 <&- >&- 2>&-").status == 2);
  CHECK(f.read("o.h5") == f.read("good.h5"));
  (void)run_shell(f, "$WEFT train recipe.toml <&- >&- 2>&-");
  const Ran ran = run_shell(f, "$WEFT train recipe.toml --resume --set train.steps=4");
  says(ran, 0, {"going on from step 3"});
}

TEST_CASE("outputs: a name or a setting that is not UTF-8 is refused, or reads back") {
  const Folder f;
  write_small_run(f);
  // In a recipe: refused at once.
  const std::string latin = "caf\xe9";
  says(run_shell(f, "$WEFT train recipe.toml --set 'sample.prompt=" + latin + "'"), 2,
       {"sample.prompt", "\\xE9", "UTF-8"});
  says(run_shell(f, "$WEFT train recipe.toml --set 'train.out=" + latin + "'"), 2, {"UTF-8"});
  f.write("bad.toml", std::string(kSmallRecipe) + "# " + latin + "\n");
  says(run_shell(f, "$WEFT train bad.toml"), 2, {"bad.toml:21:6", "\\xE9"});
  CHECK_FALSE(fs::exists(f / "run"));
  // Names of files may be any bytes: what is kept of them is text.
  const std::string copy = "cp recipe.toml " + latin + ".toml; cp text.txt " + latin + ".txt; ";
  says(run_shell(f, copy + "$WEFT train " + latin + ".toml"), 0, {"caf\\xE9"});
  says(run_shell(f, "$WEFT train " + latin + ".toml --resume --set train.steps=4"), 0,
       {"step 4/4"});
  says(run_shell(f, "$WEFT generate run --prompt a --tokens 2"), 0, {});
  says(run_shell(f, "$WEFT inspect " + latin + ".toml --json"), 0, {"\"caf\\\\xE9\""});
  says(run_shell(f, "$WEFT data " + latin + ".txt --out " + latin + ".h5"), 0, {"caf\\xE9.txt"});
  says(run_shell(f, "$WEFT data --describe " + latin + ".h5"), 0, {"caf\\xE9.txt"});
}
