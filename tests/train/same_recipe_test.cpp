// --resume by what a recipe means: written otherwise it is the same, and what differs is named.
#include "train/same_recipe.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/said.h"
#include "tests/train/small_run.h"
#include "tests/train/whole_recipe.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"

using namespace weft;
using namespace weft::tests;
namespace fs = std::filesystem;

namespace {

constexpr const char* kRecipe = R"(
[model]
width = 8
layers = 2
pattern = ["attention", "local"]
context = 16
[mlp]
width = 8
[attention]
heads = 2
[local]
type = "attention"
heads = 2
window = 4
[data]
source = "text.txt"
[optimizer]
lr = 2e-3
[train]
steps = 4
batch = 2
eval_every = 2
checkpoint_every = 2
eval_batches = 1
log_every = 1
out = "run"
[sample]
tokens = 0
)";

// The recipe with parts replaced: {from, to}, ...
std::string recipe(const std::vector<std::pair<std::string, std::string>>& changes = {}) {
  std::string r = kRecipe;
  for (const auto& [from, to] : changes) {
    const size_t at = r.find(from);
    REQUIRE(at != std::string::npos);
    r.replace(at, from.size(), to);
  }
  return r;
}

std::string words(int from = 0) {
  std::string text;
  for (int i = from; i < from + 400; ++i) text += concat("line ", i * i % 977, " of a text\n");
  return text;
}

Ran run_train(const Folder& f, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"train", "recipe.toml"});
  return run_weft(f, more);
}

void refused(const Ran& ran, const std::string& says) {
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring(says));
}

void prepare(const Folder& f) {
  f.write("recipe.toml", recipe());
  f.write("text.txt", words());
  done(run_train(f, {"--set", "train.steps=2"}));
}

// What the comparison says of a recipe against kRecipe; "" where it means the same.
std::string difference(const std::string& there, const std::string& here) {
  try {
    const train::Recipe ours = train::recipe_from_text(here, "here");
    train::require_same_recipe("old.h5", there, ours, 256, /*same_data=*/true);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}
std::string difference(const std::vector<std::pair<std::string, std::string>>& changes) {
  return difference(recipe(), recipe(changes));
}

}  // namespace

TEST_CASE("resume: a recipe written otherwise goes on, in the same bits") {
  const Folder f;
  prepare(f);
  fs::copy(f / "run", f / "twin", fs::copy_options::recursive);
  done(run_train(f, {"--resume", "--set", "train.out=twin"}));
  fs::create_directory(f / "elsewhere");
  fs::rename(f / "text.txt", f / "elsewhere/book.txt");
  f.write("recipe.toml", recipe({{"\"text.txt\"", "[\"elsewhere/book.txt\"]\nheld_out = 5e-2"},
                                 {"lr = 2e-3", "lr = 0.002\nbeta1 = 0.9\nclip = 1"},
                                 {"[sample]", "[schedule]\ndecay = 0.7\n[sample]\ntop_k = 3"}}));
  done(run_train(f, {"--resume"}));
  const auto hashes = [&](const std::string& out) {
    std::vector<std::string> all;
    const std::string metrics = f.read(out + "/metrics.jsonl"), key = "\"hash\":\"";
    for (size_t at = 0; (at = metrics.find(key, at)) != std::string::npos; ++at)
      all.push_back(metrics.substr(at + key.size(), 16));
    return all;
  };
  CHECK(hashes("run").size() == 4);
  CHECK(hashes("run") == hashes("twin"));
}

TEST_CASE("resume: a key that differs is named with both values") {
  const Folder f;
  prepare(f);
  refused(
      run_train(f, {"--resume", "--set", "optimizer.lr=1e-3"}),
      "step-0000000002.h5: the checkpoint is of another recipe: optimizer.lr is 0.002 there and "
      "0.001 here");
  refused(run_train(f, {"--resume", "--set", "optimizer.beta1=0.8"}),
          "optimizer.beta1 is 0.9 there and 0.8 here");
  f.write("other.txt", words(7));
  refused(run_train(f, {"--resume", "--set", "data.source=other.txt"}),
          "data.source is [\"text.txt\"] there and [\"other.txt\"], which holds other data, here");
  f.write("text.txt", words(7));
  refused(run_train(f, {"--resume"}),
          "step-0000000002.h5: the saved place in the data is of other");
}

TEST_CASE("resume: recipes that mean the same are the same, however they are written") {
  CHECK(difference({{"[optimizer]", "[optimizer]\nbeta2 = 0.95\nclip = 1\nweight_decay = 1e-1"}}) ==
        "");
  CHECK(difference({{"layers = 2\n", ""}}) == "");
  CHECK(difference({{"[\"attention\", \"local\"]", "[\"attention*1\", \"local\"]"}}) == "");
  CHECK(difference({{"[\"attention\", \"local\"]", "[\"attention\", \"near\"]"},
                    {"[local]", "[near]"}}) == "");
  CHECK(difference({{"context = 16", "context = 16\nmlp = [\"swiglu\", \"swiglu\"]"}}) == "");
  CHECK(difference({{"context = 16", "context = 16\nnorm_position = \"pre*2\""}}) == "");
  CHECK(difference({{"context = 16", "context = 16\nrecompute = true\nnorm = \"rms\""}}) == "");
  CHECK(difference({{"heads = 2", "heads = 2\ntype = \"attention\"\nhead_dim = 4"}}) == "");
  CHECK(difference({{"[train]", "[schedule]\ntype = \"cosine\"\ndecay = 0.5\n[train]"}}) == "");
  CHECK(difference({{"[train]", "[schedule]\n[train]\ntf32 = true\nkeep = 7\nseed = 1"}}) == "");
  CHECK(difference({{"source = ", "method = \"unigram\"\nvocabulary = 256\nsource = "}}) == "");
  CHECK(difference({{"source = \"text.txt\"", "dataset = \"text.h5\""}}) == "");
}

TEST_CASE("resume: every kind of difference is told by the key that makes it") {
  const auto tells = [](const std::string& said, const std::string& expected) {
    CHECK_THAT(said, ContainsSubstring(": " + expected + " here; "));
  };
  tells(difference({{"width = 8", "width = 16"}}), "model.width is 8 there and 16");
  tells(difference({{"layers = 2", "layers = 3"}}), "model.layers is 2 there and 3");
  tells(difference({{"window = 4", "window = 5"}}), "local.window is 4 there and 5");
  tells(difference({{"\n[mlp]\nwidth = 8", "\n[mlp]\nwidth = 9"}}), "mlp.width is 8 there and 9");
  tells(difference({{"[\"attention\", \"local\"]", "[\"attention\", \"near\"]"},
                    {"[local]", "[near]"},
                    {"window = 4", "window = 5"}}),
        "near.window is 4 (local.window) there and 5");
  tells(difference({{"type = \"attention\"\nheads = 2\nwindow = 4", "type = \"retention\""}}),
        "local.type is \"attention\" there and \"retention\"");
  tells(difference({{"[\"attention\", \"local\"]", "[\"retention\", \"local\"]"}}),
        "model.pattern is [\"attention\", \"local\"] there and [\"retention\", \"local\"]");
  tells(difference({{"context = 16", "context = 16\nmlp = \"gelu\""}}),
        "model.mlp is [\"swiglu\"] there and [\"gelu\"]");
  tells(difference({{"context = 16", "context = 16\nnorm_position = [\"pre\", \"post\"]"}}),
        "model.norm_position is [\"pre\"] there and [\"pre\", \"post\"]");
  tells(difference({{"[train]", "[schedule]\ntype = \"wsd\"\ndecay = 0.5\n[train]"}}),
        "schedule.type is \"cosine\" there and \"wsd\"");
  tells(difference({{"[train]", "[schedule]\nwarmup = 3\n[train]"}}),
        "schedule.warmup is 0 there and 3");
  tells(difference({{"source = ", "held_out = 0.1\nsource = "}}),
        "data.held_out is 0.05 there and 0.1");
  tells(difference({{"source = \"text.txt\"", "task = \"mqar\""}}),
        "data.task is absent there and \"mqar\"");
  tells(difference({{"batch = 2", "batch = 2\nseed = 9"}}), "train.seed is 1 there and 9");
}

TEST_CASE("resume: what changes no number may be what this program would not take") {
  CHECK(
      difference(recipe({{"[sample]", "[sample]\ntop_p = 0"}, {"log_every = 1", "log_every = 0"}}),
                 recipe()) == "");
  CHECK(difference(recipe({{"batch = 2", "batch = 2\ndevice = \"cuda:3\"\ndtype = \"bf16\""}}),
                   recipe()) == "");
  CHECK_THAT(difference(recipe({{"heads = 2", "heads = 3"}}), recipe()),
             ContainsSubstring("old.h5: the checkpoint is of a recipe that this program does not"));
}

TEST_CASE("resume: a run that goes on in another folder keeps what was best") {
  const Folder f;
  f.write("recipe.toml", recipe({{"lr = 2e-3", "lr = 0"}}));  // no step is better than the second
  f.write("text.txt", words());
  done(run_train(f,
                 {"--set", "train.out=still", "--set", "train.keep=9", "--set", "train.steps=6"}));
  const std::string kept = f.read("still/best.h5");
  CHECK(train::read_state(train::open_checkpoint(f / "still/best.h5")).step == 2);
  std::string from = "still/checkpoints/step-0000000004.h5";
  const auto check = [&](const std::string& out) {
    const Ran ran = run_train(
        f, {"--resume", "--from", from, "--set", "train.out=" + out, "--set", "train.steps=8"});
    done(ran);
    CHECK(ran.text.find("the best so far, is not in") == std::string::npos);
    CHECK((f.read(out + "/best.h5") == kept));
  };
  check("beside");
  fs::create_symlink("checkpoints/step-0000000002.h5", f / "still/link.h5");
  from = "still/link.h5";
  check("linked");
  from = "still/checkpoints/step-0000000004.h5";
  // The best.h5 of the old run stands in where its checkpoint was pruned.
  fs::remove(f / "still/checkpoints/step-0000000002.h5");
  check("pruned");
  CHECK((f.read("still/best.h5") == kept));
  // Where it is gone, its loss is kept, and nothing that is no better is called best.
  fs::remove(f / "still/best.h5");
  const Ran gone = run_train(
      f, {"--resume", "--from", from, "--set", "train.out=gone", "--set", "train.steps=8"});
  done(gone);
  CHECK_THAT(gone.text, ContainsSubstring("the best so far, is not in"));
  CHECK_FALSE(fs::exists(f / "gone/best.h5"));
}

TEST_CASE("resume: best.h5 of a run that went another way is not taken over") {
  const Folder f;
  prepare(f);
  const std::vector<std::string> still{"--set", "optimizer.lr=0", "--set", "train.keep=9"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), still.begin(), still.end());
    return run_train(f, more);
  };
  done(with({"--set", "train.out=still"}));
  fs::remove(f / "still/best.h5");
  // Of the same step, but of another loss.
  fs::copy_file(f / "run/checkpoints/step-0000000002.h5",
                f / "still/checkpoints/step-0000000002.h5", fs::copy_options::overwrite_existing);
  done(with({"--resume", "--from", "still/checkpoints/step-0000000004.h5", "--set", "train.out=new",
             "--set", "train.steps=6"}));
  CHECK_FALSE(fs::exists(f / "new/best.h5"));
}

TEST_CASE("resume: a finished run is left as it is") {
  const Folder f;
  prepare(f);
  const auto names = [&] {
    std::vector<std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(f / "run"))
      all.push_back(entry.path().string());
    std::sort(all.begin(), all.end());
    return all;
  };
  const auto before = names();
  const std::string best = f.read("run/best.h5");
  for (int i = 0; i < 2; ++i) done(run_train(f, {"--resume", "--set", "train.steps=2"}));
  CHECK(names() == before);
  CHECK((f.read("run/best.h5") == best));
}

TEST_CASE("resume: each key that changes a number is compared, and each that changes none is not") {
  const auto with = [&](const std::string& set) {
    const train::Recipe ours = train::recipe_from_text(kSmallModel, "here", {set});
    try {
      train::require_same_recipe("old.h5", kSmallModel, ours, 256, /*same_data=*/true);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  for (const char* set : {"train.batch=3",
                          "train.accumulate=2",
                          "train.seed=2",
                          "optimizer.lr=0.5",
                          "optimizer.beta1=0.5",
                          "optimizer.beta2=0.5",
                          "optimizer.eps=0.5",
                          "optimizer.weight_decay=0.5",
                          "optimizer.clip=0.5",
                          "optimizer.type=muon",
                          "schedule.type=wsd",
                          "schedule.warmup=5",
                          "schedule.final=0.5",
                          "data.document=line",
                          "data.held_out=0.5",
                          "data.packed=true",
                          "model.context=32",
                          "model.norm=layer",
                          "model.norm_position=post",
                          "model.mlp=none",
                          "model.tied_embeddings=false",
                          "model.positions=learned",
                          "model.z_loss=0.5",
                          "model.logit_softcap=5",
                          "model.embedding_scale=true",
                          "model.init=0.5",
                          "mlp.width=24",
                          "attention.heads=4",
                          "attention.key_heads=1",
                          "attention.head_dim=2",
                          "attention.window=3",
                          "attention.rotary=false",
                          "attention.rotary_base=500",
                          "attention.softcap=5",
                          "attention.sinks=true",
                          "attention.qk_norm=true",
                          "attention.bias=true"}) {
    const std::string key = std::string(set).substr(0, std::string(set).find('='));
    INFO(set << ": " << with(set));
    CHECK_THAT(with(set), ContainsSubstring(key + " is "));
  }
  for (const char* set : {"name=other",
                          "train.steps=7",
                          "train.log_every=3",
                          "train.eval_every=3",
                          "train.eval_batches=3",
                          "train.checkpoint_every=3",
                          "train.keep=7",
                          "train.out=there",
                          "train.dtype=f64",
                          "train.tf32=true",
                          "train.device=cpu",
                          "model.recompute=true",
                          "train.safetensors=true",
                          "sample.every=4",
                          "sample.tokens=4",
                          "sample.temperature=0.1",
                          "sample.top_k=4",
                          "sample.top_p=0.4",
                          "sample.prompt=x",
                          "schedule.decay=0.5"}) {
    INFO(set);
    CHECK(with(set) == "");
  }
}

TEST_CASE("resume: a run that lies in the folder of its text goes on with the same data") {
  const Folder f;
  f.write("recipe.toml", recipe({{"\"text.txt\"", "\"texts\""}, {"\"run\"", "\"texts/run\""}}));
  fs::create_directory(f / "texts");
  f.write("texts/text.txt", words());
  done(run_train(f, {"--set", "train.steps=2"}));
  done(run_train(f, {"--resume"}));
  const std::string inside = f.read("texts/run/metrics.jsonl");
  f.write("recipe.toml", recipe({{"\"text.txt\"", "\"texts/text.txt\""}}));
  done(run_train(f, {"--set", "train.steps=2"}));
  done(run_train(f, {"--resume"}));
  const auto last_hash = [](const std::string& metrics) {
    return metrics.substr(metrics.rfind("\"hash\":"), 25);
  };
  CHECK(last_hash(inside) == last_hash(f.read("run/metrics.jsonl")));
}

// The rates of a run say which of the schedule's keys do something beside which type.
TEST_CASE("resume: a key of the schedule is compared where it changes a rate, and nowhere else") {
  for (const std::string type : {"cosine", "wsd", "constant"}) {
    const std::string there = "[schedule]\ntype = \"" + type + "\"\nwarmup = 3\n" + kRecipe;
    const train::Recipe before = train::recipe_from_text(there, "there");
    for (const std::string set :
         {"schedule.warmup=5", "schedule.final=0.5", "schedule.decay=0.5"}) {
      const train::Recipe ours = train::recipe_from_text(there, "here", {set});
      bool changed = false;
      for (int64_t step = 0; step < 20; ++step)
        changed |= train::schedule_factor(before.schedule, step, 20) !=
                   train::schedule_factor(ours.schedule, step, 20);
      const std::string said = difference(there, ours.toml.to_text());
      INFO(type << ", " << set << ": " << said);
      CHECK(said.empty() == !changed);
      const std::string key = set.substr(0, set.find('='));
      if (changed) CHECK_THAT(said, ContainsSubstring(key + " is "));
    }
  }
}

// The keys are those that the readers ask for, so that a new one is compared too.
TEST_CASE("resume: another value of any key of the model, the data or the optimizer is told") {
  const std::set<std::string> no_number = {"name",
                                           "model.recompute",
                                           "train.steps",
                                           "train.log_every",
                                           "train.eval_every",
                                           "train.eval_batches",
                                           "train.checkpoint_every",
                                           "train.keep",
                                           "train.safetensors",
                                           "train.out",
                                           "train.device",
                                           "train.dtype",
                                           "train.tf32",
                                           "log.tensorboard",
                                           "distill.teacher",  // its hash counts
                                           "schedule.decay",   // the type is cosine
                                           "data.vocabulary",  // of bytes
                                           "data.method"};     // of a tokenizer that is trained
  std::set<std::string> tried;
  for (const std::string data : {kWholeText, kWholeTask}) {
    const std::string there = whole_recipe(data);
    const train::Recipe recipe = read_whole(there);
    const auto values = recipe.toml.values();
    for (const TomlKey& key : recipe.toml.known()) {
      const bool listed = key.path == "model.pattern" || key.path == "model.mlp" ||
                          key.path == "data.source" || key.path == "data.dataset";
      const bool task = data == kWholeTask;
      if (listed || key.path.starts_with("sample.") || values.count(key.path) == 0 ||
          key.path.ends_with(".type") ||
          !tried.insert(key.path + (task ? " of a task" : "")).second)
        continue;
      std::vector<std::string> others = {
          "layer",         "post", "learned", "gelu",   "relu",     "window", "line",    "wsd",
          "sentencepiece", "copy", "unigram", "linear", "softplus", "none",   "strided", "mean"};
      std::vector<std::string> beside;  // what another value needs
      const std::string table = key.path.substr(0, key.path.rfind('.'));
      if (key.path.ends_with(".rotary_scaling")) beside = {table + ".rotary_factor=4"};
      std::vector<std::string> on_both;  // half of a width must be even
      if (key.path == "latent_attention.rotary_fraction") on_both = {table + ".shared_width=8"};
      if (key.path == "side_by_side.shares") on_both = {"side_by_side.attention.heads=1"};
      if (key.path == "side_by_side.attention.rotary_fraction") on_both = {table + ".head_dim=8"};
      if (key.path.starts_with("distill.") && key.path != "distill.teacher")
        beside = {"distill.teacher=t.h5"};
      if (key.type == TomlType::boolean) others = {"true", "false"};
      if (key.type == TomlType::integer) others = {"1", "2", "3", "4", "8", "16", "24", "64"};
      if (key.type == TomlType::number) others = {"0.25", "0.5", "500"};
      if (key.list) others = {"[3]", "[1, 1]", "[1, 3]"};
      bool told = false;
      for (const std::string& other : others) {
        std::string here;
        try {
          std::vector<std::string> set = beside;
          set.insert(set.end(), on_both.begin(), on_both.end());
          set.push_back(key.path + "=" + other);
          const train::Recipe ours = read_whole(there, set);
          if (ours.toml.values().at(key.path).text == values.at(key.path).text) continue;
          here = ours.toml.to_text();
        } catch (const Error&) {
          continue;  // what is no value of this key
        }
        const std::string said = difference(read_whole(there, on_both).toml.to_text(), here);
        INFO(key.path << " = " << other << ": " << said);
        const bool counts =
            no_number.count(key.path) == 0 || (task && key.path == "data.vocabulary");
        if (counts) CHECK_THAT(said, ContainsSubstring(key.path + " is "));
        if (!counts) CHECK(said.empty());
        told = true;
        break;
      }
      INFO(key.path << ": no other value was taken");
      CHECK((told || no_number.count(key.path) == 1));
    }
  }
  CHECK(tried.size() > 120);
}
