// `weft lesson`: the page of a mechanism, the list of all pages, and the marks of answers.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/toml.h"
#include "core/units.h"
#include "data/tokenizer.h"
#include "train/lessons/lesson_page.h"
#include "train/lessons/marking.h"
#include "train/pages/page.h"
#include "train/verbs/loaded.h"
#include "train/verbs/mixing_views.h"
#include "train/verbs/verbs.h"
#include "train/workbench/bench.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTokens = 200;
constexpr const char* kText = "The cat sat on the mat. The cat sat";

// The layers of a model that read the text by the lesson's operation.
void keep_operation(Shown& shown, const Lesson& l) {
  if (l.operation.empty()) return;
  std::erase_if(shown.layers, [&](const LayerView& view) { return view.operation != l.operation; });
}

void require_length(size_t tokens, int64_t longest) {
  const int64_t most = std::min(kMostTokens, longest);
  require(static_cast<int64_t>(tokens) <= most, "--text has ", tokens, " tokens, expected at most ",
          most);
}

Shown shown_of(const Lesson& l, const LessonArguments& a, const std::string& text) {
  Shown shown;
  if (l.recipe.empty()) return shown;
  if (a.model.empty()) {
    const TomlTable recipe = toml_from_text(l.recipe, "the lesson's recipe");
    const auto tokenizer = data::byte_tokenizer();
    const layers::Model model(recipe, tokenizer->vocabulary(), Dtype::f32, kCpu, 1);
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    require_length(tokens.size(), model.longest_text());
    look_into(model, *tokenizer, tokens, {"fresh model", layers::layer_names(recipe).mixers}, {},
              shown);
    keep_operation(shown, l);
    return shown;
  }
  const Loaded loaded = load(a.model, "cpu");
  require(loaded.tokenizer != nullptr, loaded.path, ": was trained on a task and reads no text");
  const std::vector<int32_t> tokens = loaded.tokenizer->encode(text);
  require_length(tokens.size(), loaded.model->longest_text());
  look_into(*loaded.model, *loaded.tokenizer, tokens,
            {a.model, layers::layer_names(loaded.recipe.toml).mixers}, {}, shown);
  keep_operation(shown, l);
  require(!shown.layers.empty(), loaded.path, ": no layer of it is computed by ", l.operation,
          "; expected a model of this mechanism");
  return shown;
}

std::string reads_of(const Lesson& l, const LessonArguments& a, const Shown& shown,
                     const std::string& text) {
  std::string s = concat(
      "<p>The text is “", escaped(text), "”. ",
      a.model.empty()
          ? concat(
                "The model is small and fresh: its weights are random, nothing is learned yet, so "
                "the picture shows what the mechanism does by itself. <code>weft lesson ",
                l.name, " --model RUN --text \"your text\"</code> shows a trained model.")
          : "",
      "</p>\n<p>", escaped(matrix_note()), "</p>\n");
  size_t index = 0;
  for (const LayerView& view : shown.layers)
    s += layer_section(view, shown.texts[view.text].size(), index);
  return s + large_matrix();
}

std::vector<BenchRow> times_of(const Lesson& l, double budget) {
  if (budget == 0 || l.operation.empty()) return {};
  return bench({.names = {l.operation},
                .lengths = {128, 256, 512, 1024},
                .set = l.bench_set,
                .without = l.bench_without,
                .budget = budget},
               {.flops = 1, .bytes = 1}, nullptr);
}

void write_lesson(const Lesson& l, const LessonArguments& a, const std::string& out) {
  require(!l.recipe.empty() || (a.text.empty() && a.model.empty()), "lesson ", l.name,
          ": no model reads a text on its page; leave out --text and --model");
  const std::string text = a.text.empty() ? kText : a.text;
  const Shown shown = shown_of(l, a, text);
  ordered_json data = data_of(shown, /*packed=*/true);
  data["made_by"] = "weft lesson";
  const LessonSurroundings around{times_of(l, a.budget), reads_of(l, a, shown, text), a.budget,
                                  &data};
  const std::string page = lesson_page(l, around);
  write_page(out, page, "choose a shorter --text, or a --model with fewer layers");
  if (!is_standard_output(out))
    std::printf("%s: %s, %s\n", out.c_str(), l.title.c_str(),
                bytes_text(double(page.size())).c_str());
}

int check_answers(const Lesson& l, const std::string& path) {
  size_t wrong = 0;
  const std::vector<Mark> marks = mark_answers(l, path);
  for (const Mark& m : marks) {
    std::printf("exercise %zu: %s%s\n", m.exercise,
                m.right ? "right" : "not right: ", m.text.c_str());
    wrong += !m.right;
  }
  std::printf("%zu of %zu right; %s has %zu exercises\n", marks.size() - wrong, marks.size(),
              l.name.c_str(), exercise_count(l));
  return wrong > 0 ? 1 : 0;
}

void check(const LessonArguments& a) {
  require(
      !a.name.empty() || (a.text.empty() && a.model.empty() && a.check.empty()),
      "lesson: --text, --model and --check need the name of a lesson; `weft lesson` lists them");
  require(a.check.empty() || (a.text.empty() && a.model.empty() && a.out.empty()),
          "lesson --check marks answers and writes no page; leave out --out, --text and --model");
  require(a.budget >= 0 && a.budget <= 60, "lesson --budget: ", a.budget,
          ", expected seconds from 0 to 60");
}

}  // namespace

int run_lesson(const LessonArguments& a) {
  check(a);
  if (a.name.empty()) {
    const std::string out = a.out.empty() ? "lessons.html" : a.out;
    require_page_output(out, {}, a.overwrite);
    write_page(out, lesson_index(), "");
    if (is_standard_output(out)) return 0;
    for (const Lesson& l : lessons()) std::printf("%-16s%s\n", l.name.c_str(), l.summary.c_str());
    std::printf("%s lists them; `weft lesson NAME` writes a page\n", out.c_str());
    return 0;
  }
  const Lesson& l = lesson(a.name);
  if (!a.check.empty()) return check_answers(l, a.check);
  const std::string out = a.out.empty() ? lesson_file(l.name) : a.out;
  std::vector<std::string> inputs;
  if (!a.model.empty()) inputs.push_back(find_checkpoint(a.model));
  require_page_output(out, inputs, a.overwrite);
  write_lesson(l, a, out);
  return 0;
}

}  // namespace weft::train
