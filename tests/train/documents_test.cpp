// What the documents show runs as they show it: the verbs' manual and the recipes' manual.
#include <sstream>

#include "core/error.h"
#include "core/file.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

// The blocks between ```KIND and ``` of a document.
std::vector<std::string> blocks(const std::string& document, const std::string& kind) {
  std::vector<std::string> found;
  std::istringstream in(read_file(tests::source_path(document)));
  std::string block;
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    if (inside && line == "```") {
      found.push_back(block);
      inside = false;
    } else if (inside) {
      block += line + "\n";
    } else if (line == "```" + kind) {
      inside = true;
      block.clear();
    }
  }
  return found;
}

// The words of a command, with "double quotes" around words that hold spaces.
std::vector<std::string> words(const std::string& command) {
  std::vector<std::string> list(1);
  bool quoted = false;
  for (const char c : command) {
    if (c == '"')
      quoted = !quoted;
    else if (c == ' ' && !quoted)
      list.emplace_back();
    else
      list.back() += c;
  }
  return list;
}

void prepare(const Folder& f) {
  std::string text;
  for (int i = 0; i < 600; ++i) text += concat("The sentence with the number ", i, ".\n");
  f.write("text.txt", text);
  std::filesystem::create_directory_symlink(tests::source_path("tests"), f / "tests");
}

}  // namespace

TEST_CASE("documents: every command of the program's manual runs") {
  const Folder f;
  prepare(f);
  const auto recipes = blocks("train/README.md", "toml");
  REQUIRE(recipes.size() == 1);
  f.write("recipe.toml", recipes[0]);
  int commands = 0;
  for (const std::string& block : blocks("train/README.md", "console")) {
    std::istringstream in(block);
    for (std::string line; std::getline(in, line);) {
      if (line.rfind("$ weft ", 0) != 0) continue;
      const Ran ran = run_weft(f, words(line.substr(7)));
      INFO(line << "\n" << ran.text);
      CHECK(ran.status == 0);
      ++commands;
    }
  }
  CHECK(commands > 15);
}

TEST_CASE("documents: every recipe of the recipes' manual and folder is taken") {
  const Folder f;
  prepare(f);
  const auto inspect = [&](const std::string& path) {
    const Ran ran = run_weft(f, {"inspect", path});
    INFO(path << "\n" << ran.text);
    CHECK(ran.status == 0);
  };
  for (const std::string& block : blocks("recipes/README.md", "toml")) {
    f.write("recipe.toml", block);
    INFO(block);
    inspect(f / "recipe.toml");
  }
  // What the students of recipes/conversion are planned with.
  const Ran teacher = run_weft(f, {"train", tests::source_path("recipes/conversion/teacher.toml"),
                                   "--set", "train.steps=1", "--set", "train.batch=1", "--set",
                                   "train.eval_batches=1", "--set", "data.source=text.txt"});
  INFO(teacher.text);
  REQUIRE(teacher.status == 0);
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(tests::source_path("recipes")))
    if (entry.path().extension() == ".toml" && entry.path().parent_path().stem() != "tasks")
      inspect(entry.path().string());
}

TEST_CASE("documents: every file of recipes/tasks gives a recipe a task") {
  const Folder f;
  std::vector<std::string> words = {"compare", tests::source_path("recipes/delta.toml")};
  size_t files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(tests::source_path("recipes/tasks"))) {
    words.insert(words.end(), {"--with", entry.path().string()});
    ++files;
  }
  for (const char* setting : {"train.steps=1", "train.batch=1", "data.test_examples=2"})
    words.insert(words.end(), {"--set", setting});
  words.insert(words.end(), {"--out", "all"});
  const Ran ran = run_weft(f, words);
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(files >= 12);
  CHECK_THAT(ran.text, ContainsSubstring(concat("run ", files, " of ", files)));
}
