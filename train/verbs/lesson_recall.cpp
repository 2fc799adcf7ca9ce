#include "train/verbs/lesson_recall.h"

#include <cstdio>
#include <functional>

#include "core/error.h"
#include "core/live_line.h"
#include "core/parallel.h"
#include "core/text.h"
#include "core/units.h"
#include "train/evaluate.h"
#include "train/lessons/lesson_sections.h"
#include "train/source.h"
#include "train/step.h"

namespace weft::train {
namespace {

struct Pattern {
  const char* name;
  const char* first;
  const char* second;
};
constexpr Pattern kPatterns[] = {{"state, window", "state", "window"},
                                 {"state, state", "state", "state"},
                                 {"sees all, sees all", "full", "full"},
                                 {"state, sees all", "state", "full"}};
constexpr int64_t kSteps = 600, kBetween = 60, kContext = 32, kLong = 4096, kWindow = 8;

std::string recipe_of(const Pattern& p, int64_t steps, int64_t context = kContext) {
  const auto has = [&](const std::string& kind) { return kind == p.first || kind == p.second; };
  return concat(
      "[model]\nwidth = 32\nlayers = 2\npattern = [\"", p.first, "\", \"", p.second,
      "\"]\ncontext = ", context, "\ntied_embeddings = false\ninit = 0.125\nmlp = \"none\"\n",
      has("state") ? "[state]\ntype = \"gated_delta\"\nheads = 2\n" : "",
      has("window") ? concat("[window]\ntype = \"attention\"\nheads = 2\nwindow = ", kWindow, "\n")
                    : "",
      has("full") ? "[full]\ntype = \"attention\"\nheads = 2\n" : "",
      "[data]\ntask = \"mqar\"\nvocabulary = 32\npairs = [4, 8]\n[train]\nsteps = ", steps,
      "\nbatch = 16\n[optimizer]\nlr = 1e-2\n[schedule]\nwarmup = ", steps / 20, "\n");
}

int64_t kept_bytes(const std::string& recipe, int64_t vocabulary) {
  const layers::Model model(toml_from_text(recipe, "the lesson's recipe"), vocabulary, Dtype::f32,
                            kMeta, 1);
  layers::Generation generation;
  generation.capacity = model.context();
  model.next(empty({1, 1}, Dtype::i32, kMeta), generation);
  return generation.bytes();
}

Recalled trained(const Pattern& pattern, int64_t steps, const std::function<void(int64_t)>& tell) {
  const std::string text = recipe_of(pattern, steps);
  Recipe recipe = recipe_from_text(text, "the lesson's recipe");
  const DataSettings data = read_data(recipe.toml);
  const int64_t vocabulary = vocabulary_of(data);
  layers::Model model(recipe.toml, vocabulary, Dtype::f32, kCpu, recipe.train.seed);
  recipe.finish();
  AdamW optimizer(recipe.optimizer, model.parameters());
  Source source(data, recipe, model.context());
  const std::unique_ptr<Stepper> stepper = make_stepper(model, optimizer, recipe);
  Recalled r{pattern.name,
             model.parameter_count(),
             kept_bytes(recipe_of(pattern, steps, kLong), vocabulary),
             {},
             {},
             0,
             {}};
  for (int64_t step = 0; step < steps; ++step) {
    model.at_step(step);
    stepper->begin(step, [&] { return source.next(kCpu); });
    stepper->finish();
    tell(step + 1);
    const bool last = step + 1 == steps;
    if (!last && (step + 1) % kBetween != 0) continue;
    const Evaluation e = evaluate(model, *source.held_out(), last ? 20 : 4, kCpu);
    r.step.push_back(static_cast<double>(step + 1));
    r.right.push_back(100 * e.accuracy);
    r.last = e.accuracy;
    r.by_pairs.assign(e.slices.begin(), e.slices.end());
  }
  return r;
}

// Threads cost more than they bring where a model is so small.
struct OneThread {
  const int before = thread_count();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
};

std::string percent(double part) { return number_text("%.0f %%", 100 * part); }

}  // namespace

std::vector<Recalled> trained_recall(int64_t steps) {
  const OneThread all_along;
  LiveLine line(stderr);
  std::vector<Recalled> all;
  for (const Pattern& p : kPatterns)
    all.push_back(trained(p, steps, [&](int64_t step) {
      const bool due = line.terminal() ? line.due() : step == steps;
      if (due)
        line.draw(concat("lesson hybrids: model ", all.size() + 1, " of ", std::size(kPatterns),
                         ", ", p.name, ": step ", step, "/", steps));
    }));
  line.clear();
  return all;
}

std::string recall_section() {
  std::vector<Curve> curves;
  std::vector<std::vector<std::string>> rows;
  const std::vector<Recalled> all = trained_recall(kSteps);
  for (const Recalled& r : all) {
    curves.push_back({r.name, r.step, r.right, static_cast<int>(curves.size())});
    rows.push_back(
        {r.name, std::to_string(r.parameters), bytes_text(double(r.bytes)), percent(r.last)});
    for (const auto& [pairs, part] : r.by_pairs) rows.back().push_back(percent(part));
  }
  std::vector<std::string> heading = {"two layers", "parameters",
                                      concat("kept for ", kLong, " tokens"), "right"};
  for (const auto& [pairs, part] : all[0].by_pairs)
    heading.push_back(concat("of ", pairs, " pairs"));
  return concat(
      "<h3>Four small models, trained as this page was made</h3>\n<p>Each has two layers of width "
      "32. A state is a layer of gated delta, a window sees ",
      kWindow, " tokens, and a layer that sees all is softmax attention. Each learned for ", kSteps,
      " steps, from the same seed and the same examples. An example first names 4 or 8 pairs: a "
      "key, then its value. Then it names the keys again, in another order, and the model has to "
      "answer with their values. The curves are the part of answers that are right, on examples "
      "from which nothing was learned.</p>\n<div class=\"pair\">",
      lesson_chart({"right answers, %", "steps of training", curves}), lesson_table(heading, rows),
      "</div>\n<p>The last row is the hybrid; the rows above it have one of its parts twice, or a "
      "window in place of the layer that sees all. To recall takes two things. A value must learn "
      "which key stands before it, and a later key must find the value of its own kind. The first "
      "is near at hand: a short convolution in the layer with a state does it. The second is a "
      "look-up, and it is what softmax does best. Two layers that see all can do both, but have to "
      "find out the first by themselves, which takes many more steps.</p>\n");
}

}  // namespace weft::train
