// What a recipe says is what its readers give: each key with a value of its own, and each standard.
#include "train/recipe.h"

#include <limits>

#include "core/error.h"
#include "tests/catch.h"
#include "train/optimizer.h"
#include "train/source.h"
#include "train/stages.h"

using namespace weft;
using namespace weft::train;

namespace {

DataSettings data_of(const std::string& text) {
  return read_data(toml_from_text("[data]\n" + text, "r.toml"));
}

std::string refusal(const std::string& text, const std::vector<std::string>& set = {}) {
  try {
    recipe_from_text(text, "r.toml", set);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string data_refusal(const std::string& text) {
  try {
    data_of(text);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("recipe: each key of [train], [optimizer], [schedule] and [sample] is taken as it is") {
  const Recipe r = recipe_from_text(R"(
name = "mine"
[train]
steps = 11
batch = 12
accumulate = 13
seed = 14
device = "cpu"
dtype = "f64"
tf32 = true
log_every = 15
eval_every = 16
eval_batches = 17
checkpoint_every = 18
keep = 19
safetensors = true
out = "there"
[optimizer]
lr = 0.21
beta1 = 0.22
beta2 = 0.23
eps = 0.24
weight_decay = 0.25
clip = 0.26
[schedule]
type = "wsd"
warmup = 31
final = 0.32
decay = 0.33
[sample]
every = 41
prompt = "begin"
tokens = 42
temperature = 0.43
top_k = 44
top_p = 0.45
)",
                                    "r.toml");
  CHECK(r.name == "mine");
  CHECK(r.train.steps == 11);
  CHECK(r.train.batch == 12);
  CHECK(r.train.accumulate == 13);
  CHECK(r.train.seed == 14);
  CHECK(r.train.device == kCpu);
  CHECK(r.train.dtype == Dtype::f64);
  CHECK(r.train.tf32);
  CHECK(r.train.log_every == 15);
  CHECK(r.train.eval_every == 16);
  CHECK(r.train.eval_batches == 17);
  CHECK(r.train.checkpoint_every == 18);
  CHECK(r.train.keep == 19);
  CHECK(r.train.safetensors);
  CHECK(r.train.out == "there");
  CHECK(r.optimizer.lr == 0.21);
  CHECK(r.optimizer.beta1 == 0.22);
  CHECK(r.optimizer.beta2 == 0.23);
  CHECK(r.optimizer.eps == 0.24);
  CHECK(r.optimizer.weight_decay == 0.25);
  CHECK(r.optimizer.clip == 0.26);
  CHECK(r.schedule.type == "wsd");
  CHECK(r.schedule.warmup == 31);
  CHECK(r.schedule.final == 0.32);
  CHECK(r.schedule.decay == 0.33);
  CHECK(r.sample.every == 41);
  CHECK(r.sample.prompt == "begin");
  CHECK(r.sample.tokens == 42);
  CHECK(r.sample.temperature == 0.43);
  CHECK(r.sample.top_k == 44);
  CHECK(r.sample.top_p == 0.45);
}

TEST_CASE("recipe: the standards are those of the manual") {
  const Recipe r = recipe_from_text("[train]\ndevice = \"cpu\"\n", "some/where/small.toml");
  CHECK(r.name == "small");
  CHECK(r.train.steps == 1000);
  CHECK(r.train.batch == 16);
  CHECK(r.train.accumulate == 1);
  CHECK(r.train.seed == 1);
  CHECK(r.train.dtype == Dtype::f32);
  CHECK_FALSE(r.train.tf32);
  CHECK(r.train.log_every == 10);
  CHECK(r.train.eval_every == 0);
  CHECK(r.train.eval_batches == 20);
  CHECK(r.train.checkpoint_every == -1);
  CHECK(r.train.keep == 2);
  CHECK_FALSE(r.train.safetensors);
  CHECK(r.train.out == "runs/small");
  CHECK(r.optimizer.lr == 1e-3);
  CHECK(r.optimizer.beta1 == 0.9);
  CHECK(r.optimizer.beta2 == 0.95);
  CHECK(r.optimizer.eps == 1e-8);
  CHECK(r.optimizer.weight_decay == 0.1);
  CHECK(r.optimizer.clip == 1);
  CHECK(r.optimizer.type == "adamw");
  CHECK(r.schedule.type == "cosine");
  CHECK(r.schedule.warmup == 0);
  CHECK(r.schedule.final == 0.1);
  CHECK(r.schedule.decay == 0.2);
  CHECK(r.sample.every == 0);
  CHECK(r.sample.prompt.empty());
  CHECK(r.sample.tokens == 200);
  CHECK(r.sample.temperature == 0.8);
  CHECK(r.sample.top_k == 0);
  CHECK(r.sample.top_p == 1);
  CHECK(recipe_from_text("name = \"x\"\n", "r.toml").train.out == "runs/x");
  CHECK(recipe_from_text("", "r.toml", {"name=y"}).train.out == "runs/y");
}

TEST_CASE("recipe: Muon has keys of its own, which AdamW refuses") {
  const std::string muon = "[optimizer]\ntype = \"muon\"\n";
  const Recipe usual = recipe_from_text(muon, "r.toml");
  CHECK(usual.optimizer.muon_lr == 0.02);
  CHECK(usual.optimizer.momentum == 0.95);
  CHECK(usual.optimizer.muon_scale == "spectral");
  const Recipe r =
      recipe_from_text(muon + "muon_lr = 0.3\nmomentum = 0.4\nmuon_scale = \"adamw\"\n", "r.toml");
  CHECK(r.optimizer.muon_lr == 0.3);
  CHECK(r.optimizer.momentum == 0.4);
  CHECK(r.optimizer.muon_scale == "adamw");
  CHECK_THROWS_WITH(recipe_from_text("[optimizer]\nmomentum = 0.4\n", "r.toml").finish(),
                    ContainsSubstring("no use with type = \"adamw\""));
  CHECK_THROWS_WITH(recipe_from_text(muon + "[distill]\nteacher = \"t\"\n", "r.toml"),
                    ContainsSubstring("does not go with [distill]"));
}

TEST_CASE("recipe: the optimizer has the numbers of the recipe") {
  const Recipe r = recipe_from_text(
      "[optimizer]\nlr = 0.5\nbeta1 = 0.1\nbeta2 = 0.2\neps = 0.3\nweight_decay = 0.4\n"
      "clip = 7\n[schedule]\nwarmup = 4\n",
      "r.toml");
  const AdamW optimizer(r.optimizer, {});
  CHECK(optimizer.settings().beta1 == 0.1);
  CHECK(optimizer.settings().beta2 == 0.2);
  CHECK(optimizer.settings().eps == 0.3);
  CHECK(optimizer.settings().weight_decay == 0.4);
  CHECK(optimizer.settings().clip == 7);
  CHECK(rate_at(r, 0) == 0.125);
  CHECK(rate_at(r, 3) == 0.5);
}

TEST_CASE("recipe: both ends of a range are taken, and what lies beyond is refused") {
  const auto taken = [](const std::string& set) {
    INFO(set << ": " << refusal("", {set}));
    CHECK(refusal("", {set}).empty());
  };
  const auto refused = [](const std::string& set) {
    INFO(set);
    CHECK_THAT(refusal("", {"train.device=cpu", set}), ContainsSubstring("expected"));
  };
  for (const char* set : {"train.steps=1",
                          "train.steps=9999999999",
                          "train.batch=1",
                          "train.batch=2147483647",
                          "train.accumulate=1",
                          "train.accumulate=16777216",
                          "train.seed=0",
                          "train.log_every=1",
                          "train.eval_every=0",
                          "train.eval_batches=1",
                          "train.checkpoint_every=0",
                          "train.keep=1",
                          "optimizer.lr=0",
                          "optimizer.lr=1000",
                          "optimizer.beta1=0",
                          "optimizer.beta1=0.999999",
                          "optimizer.beta2=0",
                          "optimizer.beta2=0.999999",
                          "optimizer.eps=0",
                          "optimizer.eps=1",
                          "optimizer.weight_decay=0",
                          "optimizer.weight_decay=1000",
                          "optimizer.clip=0",
                          "optimizer.clip=1e9",
                          "schedule.warmup=0",
                          "schedule.final=0",
                          "schedule.final=1",
                          "schedule.decay=0",
                          "schedule.decay=1",
                          "schedule.type=constant",
                          "sample.every=0",
                          "sample.tokens=0",
                          "sample.temperature=0",
                          "sample.temperature=100",
                          "sample.top_k=0",
                          "sample.top_p=1",
                          "sample.top_p=1e-9"})
    taken(set);
  for (const char* set : {"train.steps=0",
                          "train.steps=10000000000",
                          "train.batch=0",
                          "train.batch=2147483648",
                          "train.accumulate=0",
                          "train.accumulate=16777217",
                          "train.seed=-1",
                          "train.log_every=0",
                          "train.eval_every=-1",
                          "train.eval_batches=0",
                          "train.checkpoint_every=-1",
                          "train.keep=0",
                          "train.out=",
                          "optimizer.lr=-1e-9",
                          "optimizer.lr=1000.1",
                          "optimizer.beta1=1",
                          "optimizer.beta2=1",
                          "optimizer.beta1=-0.1",
                          "optimizer.beta2=-0.1",
                          "optimizer.eps=-1e-9",
                          "optimizer.eps=1.1",
                          "optimizer.weight_decay=-0.1",
                          "optimizer.weight_decay=1001",
                          "optimizer.clip=-1",
                          "optimizer.clip=1.1e9",
                          "schedule.warmup=-1",
                          "schedule.final=-0.1",
                          "schedule.final=1.1",
                          "schedule.decay=-0.1",
                          "schedule.decay=1.1",
                          "sample.every=-1",
                          "sample.tokens=-1",
                          "sample.temperature=-0.1",
                          "sample.temperature=100.1",
                          "sample.top_k=-1",
                          "sample.top_p=0",
                          "sample.top_p=1.1",
                          "train.dtype=bf16",
                          "train.dtype=i32"})
    refused(set);
  CHECK_THAT(refusal("", {"schedule.type=linear"}), ContainsSubstring("cosine, wsd, constant"));
  CHECK_THAT(refusal("", {"train.steps"}), ContainsSubstring("expected KEY=VALUE"));
  CHECK_THAT(refusal("", {"=3"}), ContainsSubstring("expected KEY=VALUE"));
  CHECK_THAT(refusal("", {"train.device=gpu"}), ContainsSubstring("gpu"));
}

TEST_CASE("recipe: of two overrides of one key the later holds, and the flag of a device last") {
  CHECK(recipe_from_text("[train]\nsteps = 5\n", "r", {"train.steps=6", "train.steps=7"})
            .train.steps == 7);
  CHECK(recipe_from_text("[train]\nout = \"a\"\n", "r", {"train.out=b=c"}).train.out == "b=c");
  CHECK(recipe_from_text("", "r", {"sample.top_k=9223372036854775807"}).sample.top_k ==
        std::numeric_limits<int32_t>::max());
}

TEST_CASE("recipe: each key of [data] is taken as it is, for text, a dataset and a task") {
  const DataSettings text = data_of(
      "source = [\"a.txt\", \"b\"]\ntokenizer = \"sentencepiece\"\nvocabulary = 999\n"
      "method = \"unigram\"\ndocument = \"blank\"\nheld_out = 0.25\npacked = true\n");
  CHECK(text.sources == std::vector<std::string>{"a.txt", "b"});
  CHECK_FALSE(text.is_task);
  CHECK(text.tokenizer == "sentencepiece");
  CHECK(text.vocabulary == 999);
  CHECK(text.method == "unigram");
  CHECK(text.document == "blank");
  CHECK(text.held_out == 0.25);
  CHECK(text.packed);
  const DataSettings set = data_of("dataset = \"x.h5\"\nvocabulary = 300\nheld_out = 0\n");
  CHECK(set.sources == std::vector<std::string>{"x.h5"});
  CHECK(set.vocabulary == 300);
  CHECK(set.held_out == 0);
  const DataSettings task = data_of(
      "task = \"mqar\"\nvocabulary = 77\npairs = [3, 5]\nrandom_filler = false\npower = 0.5\n"
      "marks = 9\nexamples = 123\ntest_examples = 45\n");
  CHECK(task.is_task);
  CHECK(task.task.name == "mqar");
  CHECK(task.task.vocabulary == 77);
  CHECK(task.vocabulary == 77);
  CHECK(task.task.pairs == std::vector<int64_t>{3, 5});
  CHECK_FALSE(task.task.random_filler);
  CHECK(task.task.power == 0.5);
  CHECK(task.task.marks == 9);
  CHECK(task.task.examples == 123);
  CHECK(task.test_examples == 45);
}

TEST_CASE("recipe: the standards of [data] are those of the manual") {
  const DataSettings text = data_of("source = \"a.txt\"\n");
  CHECK(text.tokenizer == "bytes");
  CHECK(text.vocabulary == 256);
  CHECK(text.method == "bpe");
  CHECK(text.document == "file");
  CHECK(text.held_out == 0.05);
  CHECK_FALSE(text.packed);
  CHECK(data_of("source = \"a\"\ntokenizer = \"sentencepiece\"\n").vocabulary == 4096);
  CHECK(data_of("dataset = \"a.h5\"\n").vocabulary == 0);  // its own
  const DataSettings mqar = data_of("task = \"mqar\"\n");
  CHECK(mqar.vocabulary == 8192);
  CHECK(mqar.task.pairs == std::vector<int64_t>{4});
  CHECK(mqar.task.random_filler);
  CHECK(mqar.task.power == 0.01);
  CHECK(mqar.task.marks == 16);
  CHECK(mqar.task.examples == 0);
  CHECK(mqar.test_examples == 512);
  CHECK(data_of("task = \"induction\"\n").vocabulary == 16);
  CHECK(data_of("task = \"selective_copy\"\n").vocabulary == 16);
  CHECK(data_of("task = \"s5\"\n").vocabulary == 120);
  CHECK(data_of("task = \"noisy_recall\"\n").task.noise == 0.2);
  CHECK(data_of("task = \"noisy_recall\"\nnoise = 0.5\n").task.noise == 0.5);
  CHECK(data_of("task = \"fuzzy_recall\"\n").task.motif == 3);
  CHECK(data_of("task = \"fuzzy_recall\"\nmotif = 2\n").task.motif == 2);
}

TEST_CASE("recipe: [data] beyond its bounds is refused by the key") {
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"source = []\n", "source is empty"},
      {"source = \"a\"\nheld_out = 1.0\n", "held_out"},
      {"source = \"a\"\nheld_out = -0.1\n", "held_out"},
      {"source = \"a\"\nvocabulary = 257\n", "bytes have 256 values"},
      {"source = \"a\"\ntokenizer = \"sentencepiece\"\nvocabulary = 1\n", "vocabulary"},
      {"source = \"a\"\ntokenizer = \"words\"\n", "words"},
      {"source = \"a\"\nmethod = \"wordpiece\"\n", "wordpiece"},
      {"source = \"a\"\ndocument = \"page\"\n", "page"},
      {"dataset = \"a.txt\"\n", "expected a file *.h5"},
      {"task = \"mqar\"\nvocabulary = 1\n", "vocabulary"},
      {"task = \"mqar\"\nvocabulary = 16777217\n", "vocabulary"},
      {"task = \"mqar\"\npairs = []\n", "pairs is empty"},
      {"task = \"mqar\"\npairs = [0]\n", "pairs"},
      {"task = \"mqar\"\npower = 0\n", "power"},
      {"task = \"mqar\"\npower = 10.1\n", "power"},
      {"task = \"mqar\"\nmarks = 0\n", "marks"},
      {"task = \"noisy_recall\"\nnoise = 1.1\n", "noise"},
      {"task = \"fuzzy_recall\"\nmotif = 0\n", "motif"},
      {"task = \"mqar\"\nexamples = -1\n", "examples"},
      {"task = \"mqar\"\ntest_examples = 0\n", "test_examples"},
      {"packed = true\n", "needs source"}};
  for (const auto& [text, part] : bad) {
    INFO(text);
    CHECK_THAT(data_refusal(text), ContainsSubstring(part));
  }
  for (const char* text :
       {"source = \"a\"\nheld_out = 0.999\n", "source = \"a\"\nvocabulary = 256\n",
        "task = \"mqar\"\npower = 10\nvocabulary = 16777216\n",
        "task = \"mqar\"\nexamples = 0\ntest_examples = 1\nmarks = 1\n"})
    CHECK(data_refusal(text).empty());
}
