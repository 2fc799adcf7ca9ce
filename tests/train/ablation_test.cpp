// What the ways of a hybrid are worth, and what a model recalls.
#include "train/ablation.h"

#include "data/tasks.h"
#include "tests/gap.h"
#include "tests/train/said.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

layers::Model model_of(const std::string& pattern, const std::string& tables) {
  const TomlTable recipe =
      toml_from_text("[model]\nwidth = 8\nlayers = 2\ncontext = 16\nmlp = " +
                         std::string("\"none\"\npattern = [") + pattern + "]\n" + tables,
                     "r.toml");
  return {recipe, 64, Dtype::f64, kCpu, 3};
}

Tensor logits(const layers::Model& model) {
  const Tensor tokens = empty({1, 11}, Dtype::i32);
  for (int64_t i = 0; i < 11; ++i) tokens.data<int32_t>()[i] = static_cast<int32_t>(i * 7 % 64);
  return model.logits(tokens);
}

double apart(const Tensor& a, const Tensor& b) { return gap(to_doubles(a), to_doubles(b)).widest; }

// Nothing comes of the mixer of that layer.
void silence(layers::Model& model, const std::string& matrix) {
  for (layers::Parameter& p : model.parameters())
    if (p.name == matrix) p.master.zero();
}

constexpr const char* kBoth = "\"gated_delta\", \"attention\"";
constexpr const char* kTables = "[gated_delta]\nheads = 2\n[attention]\nheads = 2\n";

}  // namespace

TEST_CASE("ablation: what is left out is what the mixers of that way add") {
  layers::Model hybrid = model_of(kBoth, kTables);
  for (const bool softmax : {true, false}) {
    layers::Model other = model_of(kBoth, kTables);
    silence(other, softmax ? "layers.1.mixer.o_proj.weight" : "layers.0.mixer.o_proj.weight");
    hybrid.leave_out(softmax, !softmax);
    CHECK(apart(logits(hybrid), logits(other)) == 0);
    hybrid.leave_out(false, false);
    CHECK(apart(logits(hybrid), logits(other)) > 1e-6);
  }
}

TEST_CASE("ablation: a router's linear path and its attention are left out one by one") {
  layers::Model router = model_of("\"router\"", "[router]\nheads = 2\nblock = 4\n");
  REQUIRE(router.has_both_ways());
  const Tensor all = logits(router);
  router.leave_out(true, false);
  const Tensor linear = logits(router);
  router.leave_out(false, true);
  const Tensor softmax = logits(router);
  CHECK(apart(all, linear) > 1e-6);
  CHECK(apart(all, softmax) > 1e-6);
  CHECK(apart(linear, softmax) > 1e-6);
}

TEST_CASE("ablation: models of one way have nothing to leave out, and are as they were") {
  layers::Model pure = model_of("\"gated_delta\"", "[gated_delta]\nheads = 2\n");
  CHECK(!pure.has_both_ways());
  const Tensor before = logits(pure);
  data::TaskOptions task;
  task.vocabulary = 64;
  task.pairs = {2};
  data::BatchSource held_out(data::test_task(task, {.rows = 2, .length = 16}, 1, 6));
  const Ablations one = ablations(pure, nullptr, held_out, 0, kCpu);
  CHECK(one.without_softmax < 0);
  CHECK(one.teacher_loss < 0);
  CHECK(one.loss > 0);
  CHECK(one.recall.pairs >= 0);
  layers::Model hybrid = model_of(kBoth, kTables);
  const Tensor whole = logits(hybrid);
  const Ablations both = ablations(hybrid, &pure, held_out, 0, kCpu);
  CHECK(both.without_softmax != both.loss);
  CHECK(both.without_linear != both.loss);
  CHECK(both.teacher_loss == one.loss);
  CHECK(apart(logits(hybrid), whole) == 0);
  CHECK(apart(logits(pure), before) == 0);
}

TEST_CASE("ablation: recall counts the next tokens that are the likeliest, in both readings") {
  // A model that says the next letter of the alphabet, and a text of which every fourth letter is
  // another.
  const TomlTable recipe = toml_from_text(
      "[model]\nwidth = 256\ncontext = 16\nmlp = \"none\"\npattern = [\"attention\"]\n"
      "tied_embeddings = false\n[attention]\nheads = 2\n",
      "r.toml");
  layers::Model model(recipe, 256, Dtype::f64, kCpu, 1);
  silence(model, "layers.0.mixer.o_proj.weight");
  for (layers::Parameter& p : model.parameters()) {
    if (p.name != "embedding.weight" && p.name != "head.weight") continue;
    p.master.zero();
    const int64_t shift = p.name == "head.weight" ? 255 : 0;
    for (int64_t v = 0; v < 256; ++v) p.master.data<double>()[v * 256 + (v + shift) % 256] = 1;
  }
  const Folder f;
  std::string text;
  for (int i = 0; i < 20; ++i) text += "abcz";
  f.write("text.txt", text);
  const data::TokenDataset all =
      data::open_data({f / "text.txt"}, data::TextOptions{}, data::byte_tokenizer());
  data::BatchSource held_out(data::held_out_windows(all.all(), {.rows = 2, .length = 16}));
  const Recall r = ablations(model, nullptr, held_out, 0, kCpu).recall;
  // Of the seven pairs of neighbours in abczabcz, ab and bc are met twice.
  CHECK(gap({r.first, r.again}, {4.0 / 7, 4.0 / 7}).widest < 1e-12);
}

TEST_CASE("ablation: losses are of the batches asked for, the teacher's numbers its own") {
  const auto model = [](const std::string& pattern, const std::string& tables) {
    const TomlTable recipe =
        toml_from_text("[model]\nwidth = 8\nlayers = 2\ncontext = 64\ninit = 0.5\npattern = [" +
                           pattern + "]\n" + tables,
                       "r.toml");
    return layers::Model(recipe, 64, Dtype::f64, kCpu, 3);
  };
  layers::Model hybrid = model(kBoth, kTables);
  layers::Model pure = model("\"gated_delta\"", "[gated_delta]\nheads = 2\n");
  for (layers::Parameter& p : pure.parameters()) p.master.zero();  // says 0, which is the filler
  data::BatchSource held_out(data::test_task({.name = "mqar", .vocabulary = 64, .pairs = {2, 5}},
                                             {.rows = 2, .length = 64}, 1, 6));
  const auto loss = [&](const layers::Model& m) { return evaluate(m, held_out, 1, kCpu).loss; };
  const Ablations a = ablations(hybrid, &pure, held_out, 1, kCpu);
  CHECK(a.loss == loss(hybrid));
  CHECK(a.loss != evaluate(hybrid, held_out, 0, kCpu).loss);
  CHECK(a.teacher_loss == loss(pure));
  hybrid.leave_out(true, false);
  CHECK(a.without_softmax == loss(hybrid));
  hybrid.leave_out(false, true);
  CHECK(a.without_linear == loss(hybrid));
  hybrid.leave_out(false, false);
  CHECK(a.without_softmax != a.without_linear);
  // A sixteenth of the context as pairs.
  const auto pairs = [&](int64_t n) {
    data::BatchSource examples(data::test_task({.name = "mqar", .vocabulary = 64, .pairs = {n}},
                                               {.rows = 16, .length = 64}, 1, 64));
    return evaluate(hybrid, examples, 0, kCpu).accuracy;
  };
  CHECK(a.recall.pairs == pairs(4));
  CHECK(pairs(4) != pairs(1));
  const Recall own = ablations(pure, nullptr, held_out, 1, kCpu).recall;
  CHECK(a.teacher_recall.pairs == own.pairs);
  CHECK(a.teacher_recall.again == own.again);
  CHECK(a.teacher_recall.first == own.first);
  CHECK(own.again != a.recall.again);
}

TEST_CASE("ablation: each number is told under its own name, a zero too, one absent not") {
  Ablations a{.loss = 1, .teacher_loss = 2, .without_softmax = 3, .without_linear = 4};
  a.recall = {0.25, 0, 0.125};
  a.teacher_recall = {-1, 0.75, 0.5};
  using Numbers = std::vector<std::pair<std::string, double>>;
  CHECK((a.numbers() == Numbers{{"ablation_loss", 1},
                                {"ablation_loss_without_softmax", 3},
                                {"ablation_loss_without_linear", 4},
                                {"ablation_recall_pairs", 0.25},
                                {"ablation_recall_again", 0},
                                {"ablation_recall_first", 0.125},
                                {"teacher_loss", 2},
                                {"teacher_recall_again", 0.75},
                                {"teacher_recall_first", 0.5}}));
  CHECK(
      a.text() ==
      "held-out loss 1.0000, without softmax layers 3.0000, without linear layers 4.0000; the "
      "teacher's 2.0000\nthe model recalls 0.0 % of text that it has read before (12.5 % at first "
      "sight) and 25.0 % of pairs\nthe teacher recalls 75.0 % of text that it has read before "
      "(50.0 % at first sight)");
}

TEST_CASE("eval: --ablate tells the loss without each way of a hybrid") {
  const Folder f;
  write_run(f,
            "[model]\nwidth = 16\nlayers = 2\npattern = [\"gated_delta\", \"attention\"]\n"
            "context = 16\n[gated_delta]\nheads = 2\n[attention]\nheads = 2\n[data]\nsource = "
            "\"text.txt\"\n[train]\ndevice = \"cpu\"\nsteps = 1\nbatch = 2\nout = \"run\"\n"
            "[sample]\ntokens = 0\n");
  done(run_weft(f, {"train", "recipe.toml"}));
  says(run_weft(f, {"eval", "run", "--ablate", "--batches", "2"}), 0,
       {"without softmax layers", "without linear layers", "the model recalls"});
  const Ran plain = run_weft(f, {"eval", "run", "--batches", "2"});
  CHECK(plain.text.find("recalls") == std::string::npos);
}
