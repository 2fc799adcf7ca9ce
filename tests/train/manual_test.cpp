// The manual page and the completions say what the command line takes.
#include "train/verbs/manual.h"

#include <set>
#include <sstream>

#include "core/error.h"
#include "kernels/contract/operation.h"
#include "tests/catch.h"
#include "tests/message.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

std::string printed(const Folder& f, const std::string& kind) {
  const Ran ran = run_weft(f, {"manual", kind});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  return ran.text;
}

// The verbs that `weft --help` lists, each with the flags of its help.
std::map<std::string, std::set<std::string>> helped(const Folder& f) {
  std::map<std::string, std::set<std::string>> all;
  std::istringstream lines(run_weft(f, {"--help"}).text);
  bool verbs = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("Subcommands:")) verbs = true;
    std::istringstream words(line);
    std::string verb, word;
    if (!verbs || !line.starts_with("  ") || line.starts_with("   ") || !(words >> verb)) continue;
    const std::string text = run_weft(f, {verb, "--help"}).text;
    std::istringstream help(text.substr(0, text.find("Example:")));
    std::set<std::string>& flags = all[verb];
    while (verb != "op" && verb != "help" && help >> word)
      if (word.starts_with("--")) flags.insert(word.substr(0, word.find_first_of(",=.;:)")));
  }
  return all;
}

// What bash offers for the last of these words.
std::set<std::string> offered(const Folder& f, const std::string& words) {
  const Ran ran =
      run_shell(f,
                "bash -c '. ./weft.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _weft; "
                "printf \"%s\\n\" \"${COMPREPLY[@]}\"' bash " +
                    words);
  std::istringstream lines(ran.text);
  std::set<std::string> all;
  for (std::string line; std::getline(lines, line);) all.insert(line);
  return all;
}

}  // namespace

TEST_CASE("manual: page and completions name every verb and flag that the help names") {
  const Folder f;
  const auto verbs = helped(f);
  REQUIRE(verbs.size() > 20);
  std::map<std::string, std::string> texts;
  for (const std::string& kind : manual_kinds()) texts[kind] = printed(f, kind);
  for (const auto& [verb, flags] : verbs) {
    INFO(verb);
    CHECK_THAT(texts["man"], ContainsSubstring("\n.SS " + verb + "\n"));
    CHECK_THAT(texts["bash"], ContainsSubstring("\n    " + verb + ") flags="));
    CHECK_THAT(texts["zsh"], ContainsSubstring("\n    " + verb + ")\n"));
    CHECK_THAT(texts["fish"], ContainsSubstring(" -a " + verb + " -d "));
    for (const std::string& flag : flags) {
      INFO(flag);
      std::string escaped;
      for (const char c : flag) escaped += c == '-' ? "\\-" : std::string(1, c);
      CHECK_THAT(texts["man"], ContainsSubstring("\\fB" + escaped + "\\fR"));
      CHECK_THAT(texts["zsh"], ContainsSubstring("'" + flag + "["));
      CHECK_THAT(texts["fish"], ContainsSubstring("from " + verb + "' -l " + flag.substr(2)));
    }
  }
}

TEST_CASE("manual: bash is offered verbs, then a verb's flags, its choices and files") {
  const Folder f;
  if (run_shell(f, "bash --version").status != 0) SKIP("there is no bash");
  f.write("weft.bash", printed(f, "bash"));
  f.write("delta notes.txt", "");
  CHECK(offered(f, "weft tr") == std::set<std::string>{"train"});
  CHECK(offered(f, "weft train --res") == std::set<std::string>{"--resume"});
  CHECK(offered(f, "weft op delta") == std::set<std::string>{"delta", "delta notes.txt"});
  CHECK(offered(f, "weft help ma") == std::set<std::string>{"manual"});
  CHECK(offered(f, "weft manual z") == std::set<std::string>{"zsh"});
}

TEST_CASE("manual: what a text holds is no markup of any of the four") {
  Manual m{".a text", {}};
  m.verbs.push_back({"one", "it's a [verb]: with \\ and 'quotes'", ".first\n.second", {}, {}, {}});
  m.verbs[0].flags = {{"--a-b", "X:Y", "takes [one]: it's"}};
  const std::string man = manual_page(m);
  CHECK_THAT(man, ContainsSubstring("\n\\&.a text") && ContainsSubstring("\n\\&.second") &&
                      ContainsSubstring("\\fB\\-\\-a\\-b\\fR") && ContainsSubstring("\\e and"));
  CHECK_THAT(zsh_completion(m),
             ContainsSubstring("'--a-b[takes \\[one\\]\\: it'\\''s]:X\\:Y:_files'"));
  CHECK_THAT(fish_completion(m), ContainsSubstring("-l a-b -r -d 'takes [one]: it\\'s'"));
  CHECK_THAT(message([&] { manual_as("bsh", m); }), ContainsSubstring("did you mean \"bash\""));
}
