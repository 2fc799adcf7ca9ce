// Every number that the program reads, with what is no number, too small, too large, or no number
// at all. The keys are those that the readers name, so that a new one is tried too.
#include <iterator>
#include <set>
#include <sstream>

#include "core/text.h"
#include "core/toml.h"
#include "tests/catch.h"
#include "tests/train/program.h"
#include "tests/train/whole_recipe.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

std::string refusal(const std::string& text, const std::string& set) {
  try {
    read_whole(text, {set});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

TEST_CASE("keys: a number is taken or refused by its name, whatever stands there") {
  const Folder f;
  std::string words;
  for (int i = 0; i < 100; ++i) words += concat("word ", i, " of the text\n");
  f.write("text.txt", words);
  int keys = 0;
  std::set<std::string> tried;
  for (const std::string data : {kWholeText, kWholeTask}) {
    const std::string text = whole_recipe(data);
    f.write("r.toml", text);
    std::vector<std::string> taken{"train", "r.toml", "--overwrite"};
    for (const TomlKey& key : read_whole(text).toml.known()) {
      const bool number = key.type == TomlType::integer || key.type == TomlType::number;
      if (!number || !tried.insert(key.path).second) continue;
      ++keys;
      for (const char* value : {"nan", "inf", "-inf", "-1", "0", "1e308", "4611686018427387904",
                                "text", "12abc", "1.5x", "[\"text\"]"}) {
        const std::string set = key.path + "=" + value, why = refusal(text, set);
        INFO(set << ": " << why);
        const bool plain = std::string(value) == "0" || std::string(value).size() == 19;
        if (!why.empty())
          CHECK_THAT(why, ContainsSubstring(last_part(key.path)));
        else if (plain && set != "model.init=0" && set != "router.soft_steps=0" &&
                 set != "document_router.soft_steps=0")
          taken.insert(taken.end(), {"--set", set});
        else
          CHECK(plain);
      }
    }
    // What is taken is taken together too, and a run with it ends.
    const Ran ran = run_weft(f, taken, 120);
    INFO(ran.text);
    CHECK(ran.status == 0);
  }
  CHECK(keys > 90);
}

TEST_CASE("keys: sizes that do not fit each other are refused by name") {
  const std::string text = whole_recipe(kWholeText);
  const auto refused = [&](const std::string& set, const std::string& name) {
    const std::string why = refusal(text, set);
    INFO(set << ": " << why);
    CHECK_THAT(why, ContainsSubstring(name));
  };
  refused("attention.heads=16", "heads");  // a head of no columns
  refused("attention.heads=3", "heads");
  refused("attention.key_heads=3", "key_heads");
  refused("attention.head_dim=3", "head_dim");
  refused("retention.key_width=3", "key_width");
  refused("mamba2.groups=3", "groups");
  refused("moe.top_k=3", "top_k");
  refused("train.batch=2147483647", "batch");
  refused("block_sparse.block=1", "");
  CHECK_THAT(refusal(text, "model.context=1073741824"),
             ContainsSubstring("block") && ContainsSubstring("larger"));
}

TEST_CASE("keys: more layers than there can be are refused at once") {
  const std::string text = whole_recipe(kWholeText);
  for (const char* set :
       {"model.layers=1000000000000", "model.layers=10001",
        "model.pattern=[attention*1000000000000]", "model.pattern=[attention*10001]",
        "model.pattern=[attention*9000, delta*9000]", "model.mlp=[moe*99999999999999999999]"}) {
    const std::string why = refusal(text, set);
    INFO(set << ": " << why);
    CHECK_THAT(why, ContainsSubstring("10000"));
  }
}

TEST_CASE("keys: a table that nothing names is refused as unused, and dropped under an override") {
  const std::string base =
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\n"
      "[attention]\nheads = 2\n" +
      std::string(kWholeText);
  CHECK_THAT(refusal(base + "[gated_linear]\nheads = 2\n", "train.steps=1"),
             ContainsSubstring("r.toml:9:2: [gated_linear] is not used") &&
                 ContainsSubstring("model.pattern"));
  CHECK_THAT(refusal(base + "[local]\ntype = \"delta\"\n", "train.steps=1"),
             ContainsSubstring("[local] is not used"));
  CHECK_THAT(refusal(base + "[moe]\nexperts = 2\n", "train.steps=1"),
             ContainsSubstring("[moe] is not used") && ContainsSubstring("model.mlp"));
  CHECK_THAT(refusal(base + "[gated_linaer]\nheads = 2\n", "train.steps=1"),
             ContainsSubstring("did you mean \"gated_linear\"?"));
  CHECK_THAT(refusal(base + "[block_sparse]\npattern = \"window\"\nrandom_blocks = 2\n",
                     "model.pattern=[block_sparse]"),
             ContainsSubstring("\"random_blocks\" in [block_sparse] is not used"));

  // What an override makes useless is not in the recipe of the run.
  const Recipe other =
      read_whole(base, {"model.pattern=[delta]", "model.mlp=none", "mlp.width=64"});
  CHECK_THAT(other.toml.to_text(), !ContainsSubstring("attention") && !ContainsSubstring("[mlp]"));
  CHECK_NOTHROW(read_whole(other.toml.to_text()));
  CHECK_THAT(refusal(base + "[gated_linaer]\nheads = 2\n", "model.pattern=[delta]"),
             ContainsSubstring("unknown key \"gated_linaer\""));
}

TEST_CASE("keys: data are of one kind, that of the override where there is one") {
  const std::string base =
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"mamba\"]\n"
      "[data]\nsource = \"text.txt\"\ndocument = \"line\"\npacked = true\n";
  const Recipe task = read_whole(base, {"data.task=mqar", "data.vocabulary=32"});
  CHECK_THAT(task.toml.to_text(), !ContainsSubstring("source") && !ContainsSubstring("packed"));
  CHECK_THAT(refusal(base + "task = \"mqar\"\n", "train.steps=1"),
             ContainsSubstring("\"source\" in [data] is not used"));
  CHECK_THAT(refusal(base, "data.pairs=[4]"), ContainsSubstring("\"pairs\" in [data] is not used"));
  CHECK(read_whole(base + "tokenizer = \"sentencepiece\"\nvocabulary = 999\n",
                   {"data.tokenizer=bytes"})
            .toml.to_text()
            .find("999") == std::string::npos);
}

TEST_CASE("keys: a run's folder may look like a date, and is that after a resume too") {
  const Folder f;
  std::string words;
  for (int i = 0; i < 100; ++i) words += concat("word ", i, " of the text\n");
  f.write("text.txt", words);
  f.write("r.toml", "[model]\nwidth = 8\ncontext = 16\npattern = [\"mamba\"]\nmlp = \"none\"\n" +
                        std::string(kWholeText) + "[train]\nsteps = 1\nbatch = 2\n");
  const std::vector<std::string> train{"train", "r.toml", "--set", "train.out=2026-11-28"};
  const Ran ran = run_weft(f, train);
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(std::filesystem::exists(f / "2026-11-28/recipe.toml"));
  const Ran again =
      run_weft(f, {"train", "2026-11-28/recipe.toml", "--resume", "--set", "train.steps=2"});
  INFO(again.text);
  CHECK(again.status == 0);
  const Ran wrote = run_weft(f, {"generate", "2026-11-28", "--prompt", "w", "--tokens", "2"});
  INFO(wrote.text);
  CHECK(wrote.status == 0);
}

TEST_CASE("keys: flags with numbers are held to their ranges like keys") {
  const Folder f;
  f.write("r.toml", whole_recipe(kWholeText));
  const auto refused = [&](std::vector<std::string> words, const std::string& flag,
                           const std::string& value) {
    words.insert(words.end(), {flag, value});
    const Ran ran = run_weft(f, words, 60);
    INFO(flag << " " << value << ": " << ran.text);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring(flag));
  };
  for (const char* value : {"-1", "nan", "text", "99999999999999999999"}) {
    refused({"eval", "run"}, "--batches", value);
    refused({"replay", "r.toml", "--out", "x.h5"}, "--steps", value);
    for (const char* flag : {"--tokens", "--top-k", "--seed"})
      refused({"generate", "run", "--prompt", "a"}, flag, value);
  }
  for (const char* value : {"-1", "nan", "inf", "-inf", "text", "1e308", "1e999"})
    for (const char* flag : {"--temperature", "--top-p"})
      refused({"generate", "run", "--prompt", "a"}, flag, value);
  refused({"replay", "r.toml", "--out", "x.h5"}, "--steps", "0");
  for (const char* value : {"0", "-1", "nan", "4611686018427387904"}) {
    refused({"bench", "matmul"}, "--lengths", value);
    refused({"data", "r.toml", "--out", "x.h5"}, "--vocabulary", value);
  }
  for (const char* value : {"-1", "nan", "inf"}) refused({"bench", "matmul"}, "--budget", value);
}

// The flags are those of the help texts, so that a new one is tried too.
TEST_CASE("keys: letters behind a flag's number are refused, whatever the verb") {
  const Folder f;
  const auto words = [&](const std::string& text) {
    std::istringstream in(text);
    return std::vector<std::string>(std::istream_iterator<std::string>(in), {});
  };
  std::set<std::string> verbs, flags;
  for (const std::string& word : words(run_weft(f, {"--help"}).text)) {
    if (word.find_first_not_of("abcdefghijklmnopqrstuvwxyz") != std::string::npos) continue;
    if (word != "help" && run_weft(f, {"help", word}).status == 0) verbs.insert(word);
  }
  for (const std::string& verb : verbs) {
    const std::vector<std::string> help = words(run_weft(f, {verb, "--help"}).text);
    for (size_t i = 0; i + 1 < help.size(); ++i) {
      const std::string& type = help[i + 1];  // "INT", "UINT:NONNEGATIVE=1"
      const bool number =
          type.starts_with("INT") || type.starts_with("UINT") || type.starts_with("FLOAT");
      if (!help[i].starts_with("--") || !number) continue;
      flags.insert(help[i]);
      for (const char* value : {"12abc", "1x", "3 4", "1e", "", " ", "--1", "0x1g"}) {
        const Ran ran = run_weft(f, {verb, concat(help[i], "=", value)}, 60);
        INFO(verb << " " << help[i] << "=\"" << value << "\": " << ran.text);
        CHECK(ran.status == 2);
        CHECK_THAT(ran.text, ContainsSubstring(help[i]));
      }
    }
  }
  CHECK(verbs.size() >= 10);
  for (const char* flag : {"--batches", "--tokens", "--temperature", "--top-k", "--top-p", "--seed",
                           "--vocabulary", "--steps", "--lengths", "--budget"}) {
    INFO(flag);
    CHECK(flags.count(flag) == 1);
  }
}
