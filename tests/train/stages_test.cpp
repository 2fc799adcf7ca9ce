// The stages of [distill], step by step: what rate, decay, length of text and loss each has.
#include "train/stages.h"

#include <cmath>

#include "tests/folder.h"
#include "tests/gap.h"
#include "train/distillation.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
using autograd::Var;
using layers::Batch;

namespace {

constexpr int64_t kVocabulary = 11;

// The recipe of a teacher or a student with these mixers; `more` are whole tables.
std::string recipe(const std::string& pattern, const std::string& model, const std::string& more) {
  return concat("[model]\nwidth = 8\ncontext = 16\ninit = 0.4\nmlp = \"none\"\npattern = [",
                pattern, "]\n", model, "\n", more,
                "[attention]\nheads = 2\n[data]\ntokens = 11\n"
                "[train]\ndevice = \"cpu\"\ndtype = \"f64\"\nsteps = 12\n");
}

std::string stages(const Folder& f, const std::string& align, const std::string& match) {
  return concat("[distill]\nteacher = \"", f / "teacher.h5", "\"\n[distill.align]\n", align,
                "[distill.match]\n", match);
}

layers::Model model_of(const Recipe& r, int64_t step = 0) {
  layers::Model m(r.toml, kVocabulary, Dtype::f64, kCpu, 3);
  m.at_step(step);
  return m;
}
layers::Model model_of(const std::string& text, int64_t step = 0) {
  return model_of(recipe_from_text(text, "r"), step);
}

void save_teacher(const Folder& f, const std::string& text, int64_t step = 0) {
  RunState state;
  state.recipe = text;
  state.step = step;
  state.seed = 3;
  const layers::Model m = model_of(text);
  save_start(f / "teacher.h5", state, [&](const PutTensor& put) {
    for (const layers::Parameter& p : m.parameters()) put(p.name, p.master);
  });
}

Batch batch_of(int64_t rows, int64_t length) {
  Batch b{empty({rows, length}, Dtype::i32), empty({rows, length}, Dtype::i32), {}};
  for (int64_t i = 0; i < rows * length; ++i) {
    b.tokens.data<int32_t>()[i] = static_cast<int32_t>(i * i % kVocabulary);
    b.targets.data<int32_t>()[i] = static_cast<int32_t>((i + 1) * (i + 1) % kVocabulary);
  }
  return b;
}

// The mean over rows of KL(p || q) t^2, of logits as the models show them.
double divergence_of(const Tensor& teacher, const Tensor& student, double t) {
  const std::vector<double> x = to_doubles(teacher), y = to_doubles(student);
  const size_t V = kVocabulary, rows = x.size() / V;
  double all = 0;
  for (size_t r = 0; r < rows; ++r) {
    double p_sum = 0, q_sum = 0;
    for (size_t i = r * V; i < (r + 1) * V; ++i)
      p_sum += std::exp(x[i] / t), q_sum += std::exp(y[i] / t);
    for (size_t i = r * V; i < (r + 1) * V; ++i)
      all += std::exp(x[i] / t) / p_sum * ((x[i] - y[i]) / t - std::log(p_sum / q_sum));
  }
  return all * t * t / static_cast<double>(rows);
}

// sum (y - target)^2 / sum target^2.
double away(const Tensor& y, const Tensor& target) {
  const std::vector<double> a = to_doubles(y), b = to_doubles(target);
  double apart = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) apart += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
  return apart / size;
}

constexpr const char* kAlign = "steps = 3\nlr = 1e-2\nlength = 4\n";
constexpr const char* kMatch = "steps = 4\nlr = 2e-3\nlength = 8\ntemperature = 2\n";

}  // namespace

TEST_CASE("stages: each has its own rate, whose schedule begins and ends with it") {
  const Folder f;
  for (const char* type : {"cosine", "wsd", "constant"}) {
    const Recipe r =
        recipe_from_text(recipe("\"attention\"", "",
                                stages(f, kAlign, kMatch) + "[optimizer]\nlr = 5e-3\n" +
                                    "[schedule]\nwarmup = 2\ntype = \"" + type + "\"\n"),
                         "r");
    const AdamW optimizer(r.optimizer, model_of(recipe("\"attention\"", "", "")).parameters());
    for (int64_t step = 0; step < 12; ++step) {
      INFO(type << ", step " << step);
      const int64_t begin = step < 3   ? 0
                            : step < 7 ? 3
                                       : 7,
                    steps = step < 3   ? 3
                            : step < 7 ? 4
                                       : 5;
      const double lr = step < 3 ? 1e-2 : step < 7 ? 2e-3 : 5e-3;
      const Stage s = stage_at(r, step);
      CHECK(s.begin == begin);
      CHECK(s.steps == steps);
      CHECK(s.length == (step < 3 ? 4 : step < 7 ? 8 : 0));
      CHECK(rate_at(r, step) == Approx(lr * schedule_factor(r.schedule, step - begin, steps)));
      // What alignment leaves alone must not shrink.
      CHECK(settings_at(optimizer, r, step).weight_decay == (step < 3 ? 0 : 0.1));
    }
    CHECK(in_words(r, stage_at(r, 4)) ==
          "stage 2 of 3: logits are matched, 4 steps at lr 0.002, texts of 8");
  }
}

TEST_CASE("stages: alignment is the mean over changed mixers, with their auxiliary losses") {
  const Folder f;
  save_teacher(f, recipe("\"attention\", \"retention\", \"attention\", \"attention\"",
                         "norm_eps = 1e-3", "[retention]\nheads = 2\n"));
  // Layers 1 and 3 have other mixers, of which the last one has a price.
  const std::string text =
      recipe("\"attention\", \"delta\", \"attention\", \"router\"", "norm_eps = 1e-3",
             stages(f, kAlign, kMatch) +
                 "[delta]\nheads = 2\n[router]\nheads = 2\nblock = 4\nsoft_steps = 0\n"
                 "anneal_steps = 0\ndraw_steps = 9\nbudget = 0.1\n");
  const Recipe r = recipe_from_text(text, "r");
  const layers::Model student = model_of(r),
                      teacher = model_of(read_state(open_checkpoint(f / "teacher.h5")).recipe);
  const Distillation d(r, student);
  const Batch whole = batch_of(2, 16),
              cut = {whole.tokens.reshape({8, 4}), whole.targets.reshape({8, 4}), {}};
  const auto seen = teacher.mixed(cut);
  std::vector<Var> prices;
  double mean = 0;
  for (const size_t layer : {1, 3})
    mean += away(student.mix(layer, seen[layer].x, cut, prices).value(), seen[layer].y) / 2;
  const layers::Loss loss = d.loss(whole, stage_at(r, 0));
  CHECK(loss.cross_entropy.item() == Approx(mean).epsilon(1e-9));
  REQUIRE(prices.size() == 1);
  REQUIRE(prices[0].value().item() > 0.01);
  CHECK(loss.total.value().item() - mean == Approx(prices[0].value().item()).epsilon(1e-7));
}

TEST_CASE("stages: logits are matched with both soft caps, the temperature and all losses") {
  const Folder f;
  save_teacher(f, recipe("\"attention\"", "logit_softcap = 1.5", ""));
  const std::string text =
      recipe("\"router\"", "logit_softcap = 0.7",
             stages(f, kAlign, kMatch) +
                 "[router]\nheads = 2\nblock = 4\nsoft_steps = 0\nanneal_steps = 0\n"
                 "draw_steps = 9\nbudget = 0.1\nnoise = 0\n");
  const Recipe r = recipe_from_text(text, "r");
  const layers::Model student = model_of(r),
                      teacher = model_of(read_state(open_checkpoint(f / "teacher.h5")).recipe);
  const Distillation d(r, student);
  const Batch whole = batch_of(2, 16);
  const Tensor cut = whole.tokens.reshape({4, 8});
  const double expected = divergence_of(teacher.logits(cut), student.logits(cut), 2);
  const layers::Loss loss = d.loss(whole, stage_at(r, 5));
  CHECK(loss.cross_entropy.item() == Approx(expected).epsilon(1e-9));
  std::vector<Var> prices;
  student.states({cut, cut, {}}, prices);
  REQUIRE(prices.size() == 1);
  CHECK(loss.total.value().item() - expected == Approx(prices[0].value().item()).epsilon(1e-7));
  const double alone = student.loss(whole).total.value().item();
  CHECK(d.loss(whole, stage_at(r, 8)).total.value().item() == alone);
}

TEST_CASE("stages: a teacher is asked as it was at its own step") {
  const Folder f;
  const std::string drawn =
      "[linear_attention]\nheads = 2\nfeature_map = \"favor+\"\nfeatures = 5\nredraw = 3\n";
  const std::string teacher = recipe("\"linear_attention\"", "", drawn);
  save_teacher(f, teacher, 7);
  const std::string text = recipe("\"attention\"", "", stages(f, kAlign, kMatch));
  const Recipe r = recipe_from_text(text, "r");
  const layers::Model student = model_of(r);
  const Distillation d(r, student);
  const Batch batch = batch_of(1, 8);
  const double expected =
      divergence_of(model_of(teacher, 7).logits(batch.tokens), student.logits(batch.tokens), 2);
  CHECK(d.loss(batch, stage_at(r, 5)).cross_entropy.item() == Approx(expected).epsilon(1e-9));
  CHECK(divergence_of(model_of(teacher, 0).logits(batch.tokens), student.logits(batch.tokens), 2) !=
        Approx(expected).epsilon(1e-6));
}

TEST_CASE("stages: a mixer is aligned for its own table, not for one whose name begins with its") {
  const Folder f;
  const std::string pattern = "\"soft\", \"soft\", \"soft_wide\", \"soft\"",
                    soft = "[soft]\ntype = \"attention\"\nheads = 2\n",
                    wide = "[soft_wide]\ntype = \"attention\"\nheads = 2\n";
  save_teacher(f, recipe(pattern, "", soft + wide));
  const Recipe r = recipe_from_text(
      recipe(pattern, "", stages(f, kAlign, kMatch) + soft + wide + "window = 3\n"), "r");
  const layers::Model student = model_of(r),
                      teacher = model_of(read_state(open_checkpoint(f / "teacher.h5")).recipe);
  const Batch whole = batch_of(2, 16),
              cut = {whole.tokens.reshape({8, 4}), whole.targets.reshape({8, 4}), {}};
  const auto seen = teacher.mixed(cut);
  std::vector<Var> none;
  const double alone = away(student.mix(2, seen[2].x, cut, none).value(), seen[2].y);
  REQUIRE(alone > 0);
  CHECK(Distillation(r, student).loss(whole, stage_at(r, 0)).cross_entropy.item() ==
        Approx(alone).epsilon(1e-9));
}
