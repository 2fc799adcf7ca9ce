// The lesson on hybrids: layers of several kinds in one model, what each part costs and what it is
// for. Its numbers are those of models that are built, and trained, as the page is made.
#include <algorithm>
#include <cmath>

#include "core/toml.h"
#include "core/units.h"
#include "kernels/contract/operation.h"
#include "layers/model.h"
#include "train/lessons/lesson.h"
#include "train/lessons/lesson_sections.h"
#include "train/verbs/lesson_recall.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Each mechanism of these lessons buys something and pays for it.</p>
<ul>
<li><b>Softmax attention</b> finds any token of the past again, however many there are. It pays
with a cache that grows with the text, and with work that grows with its square.</li>
<li><b>A window</b> does the same for what is near, at a fixed price, and knows nothing of what is
far.</li>
<li><b>A state</b> (linear attention, the delta rules, Mamba) carries something of everything, at
a fixed price. But it has $K * V$ numbers a head, and a text holds more: what was said once and
long ago may be overwritten.</li>
</ul>
<p>A model has many layers, and they need not be alike. A <b>hybrid</b> takes most of its layers
from the cheap kinds, and a few that see everything. The cheap layers do most of the work: they
follow the sentence, count, and keep track. The dear ones are there for the moments in which a
model must look something up. Since the layers stand in a row, a token that one layer found is
known to all behind it.</p>
<p>How many dear layers? Models in use have one in four to one in eight. The first form below
counts the memory of such a stack, the second its work. The section after them measures what
each part can look up.</p>
)html";

constexpr int64_t kWidth = 32, kHeads = 2, kWindow = 16;

// The layers of a hybrid as a recipe: `full` see all, `window` a window, `linear` have a state.
std::string recipe_of(const std::vector<std::string>& pattern, int64_t context) {
  std::string names;
  for (const std::string& kind : pattern)
    names += concat(names.empty() ? "\"" : ", \"", kind, "\"");
  std::string text = concat("[model]\nwidth = ", kWidth, "\nlayers = ", pattern.size(),
                            "\npattern = [", names, "]\ncontext = ", context, "\nmlp = \"none\"\n");
  const auto table = [&](const char* kind, const std::string& settings) {
    if (std::find(pattern.begin(), pattern.end(), kind) != pattern.end())
      text += concat("[", kind, "]\n", settings, "\nheads = ", kHeads, "\n");
  };
  table("full", "type = \"attention\"");
  table("window", concat("type = \"attention\"\nwindow = ", kWindow));
  table("state", "type = \"retention\"");
  return text;
}

std::string hybrid_of(const Values& n, int64_t context) {
  std::vector<std::string> pattern;
  for (const char* kind : {"full", "window", "state"})
    for (int64_t i = 0; i < static_cast<int64_t>(n.at(kind).at({}).at[0]); ++i)
      pattern.emplace_back(kind);
  return recipe_of(pattern, context);
}

layers::Model built(const std::string& recipe, Device device) {
  return {toml_from_text(recipe, "the lesson's recipe"), 256, Dtype::f32, device, 1};
}

// Bytes of what a generation keeps, by the program's plan of it.
int64_t state_bytes(const std::string& recipe) {
  const layers::Model model = built(recipe, kMeta);
  layers::Generation generation;
  generation.capacity = model.context();
  model.next(empty({1, 1}, Dtype::i32, kMeta), generation);
  return generation.bytes();
}

int64_t length_of(const Values& n) {
  return int64_t{16} << static_cast<int64_t>(n.at("level").at({}).at[0]);
}

Values memory_of_layers(const Values& n) {
  Values y;
  y["bytes"][{}] = number_value(static_cast<double>(state_bytes(hybrid_of(n, length_of(n)))));
  return y;
}

// What a token costs beyond the products with the weights, which do not depend on the length.
Values work_of_layers(const Values& n) {
  const layers::Model model = built(hybrid_of(n, length_of(n)), kMeta);
  layers::Model one = built(hybrid_of(n, 1), kMeta);
  Values y;
  y["more"][{}] = number_value(model.flops_per_token() - one.flops_per_token());
  return y;
}

std::vector<LessonForm> forms() {
  return {{"What is kept while a text is written",
           R"html(
<p>Layers of width $D$ with $H$ heads, in numbers of four bytes. A layer that sees all keeps a key
and a value of $D$ numbers for each token. One with a window needs the last $W$ of them; on a
CPU the program has room for twice as many, so that it seldom moves what stays (on a GPU it keeps
a ring of $W$). A state has a
table for each head: here of retention, with keys of width $D / H$ and values twice as wide. The
program's number is what it reserves for a generation of $T$ tokens.</p>)html",
           R"(T = 16 * floor(exp(level * log(2)) + 0.5)   # the length of the text
of_full = full * T * 2 * D   # numbers: a key and a value a token
of_window = window * smaller(T, 2 * W) * 2 * D   # room for two windows
of_state = state * H * (D / H) * (2 * D / H)   # whatever the length
bytes = 4 * (of_full + of_window + of_state)
)",
           memory_of_layers},
          {"What a token costs beyond the weights",
           R"html(
<p>Every layer multiplies each token with its weights; that work does not depend on the length.
The keys that a token sees do: on average over a text, $(T + 1) / 2$ in a layer that sees all,
and $W - W * (W - 1) / (2 * T)$ in a window. The form counts how many operations a token of a text
of $T$ tokens needs more than one of a text of one token.</p>)html",
           R"(T = 16 * floor(exp(level * log(2)) + 0.5)
all = (T + 1) / 2   # keys that a token sees, on average
near = W - W * (W - 1) / (2 * T)
of_full = full * H * 2 * (all - 1) * (2 * D / H)
of_window = window * H * 2 * (near - 1) * (2 * D / H)
more = of_full + of_window   # a state adds nothing
)",
           work_of_layers}};
}

std::vector<Experiment> experiments() {
  return {{"One in how many?",
           R"html(
<p>Forty-eight layers of width 4096, in numbers of two bytes. One layer in $r$ sees all, the others
have a state of 128 by 128 numbers for each of 32 heads. The curves show what a generation keeps,
in GB, over the length in thousands of tokens: the hybrid, and beside it a model whose layers all
see everything. (In models of this size heads share keys and values, which divides both curves'
slope by the same number.)</p>)html",
           {{"one layer in", "r", 1, 16, 1, 4}},
           R"(full = 48 / r
for m = 1 .. 20
  length = 10 * m   # in thousands
  kept = full * length * 1000 * 2 * 4096 + (48 - full) * 32 * 128 * 128
  hybrid[length] = 2 * kept / 1000000000
  dense[length] = 2 * 48 * length * 1000 * 2 * 4096 / 1000000000
)",
           "thousands of tokens",
           "GB",
           {{"hybrid", "hybrid"}, {"all layers see all", "dense"}}}};
}

// Recall by single operations, without a model: pairs of a random key and a random value of kSize
// numbers are read, and each key asks for its value. An answer is right if no other value fits it
// better.
constexpr int64_t kSize = 16, kDraws = 8;

struct Pairs {
  Tensor keys, values;  // [1, P, 1, kSize], of length one
};
Tensor of_length_one(int64_t P, uint64_t seed, const char* name) {
  const Tensor t = kernels::normal({1, P, 1, kSize}, seed, name);
  const weft::View<double> x = view<double>(t);
  for (int64_t i = 0; i < P; ++i) {
    double square = 0;
    for (int64_t d = 0; d < kSize; ++d) square += x(0, i, 0, d) * x(0, i, 0, d);
    for (int64_t d = 0; d < kSize; ++d) x(0, i, 0, d) /= std::sqrt(square);
  }
  return t;
}

// The part of the answers [P, kSize] that are right.
double right_part(const std::vector<double>& answers, const Tensor& values) {
  const int64_t P = values.size(1);
  const std::vector<double> v = to_doubles(values);
  int64_t right = 0;
  for (int64_t i = 0; i < P; ++i) {
    const auto fit = [&](int64_t j) {
      double sum = 0;
      for (int64_t d = 0; d < kSize; ++d)
        sum += answers[static_cast<size_t>(i * kSize + d)] * v[static_cast<size_t>(j * kSize + d)];
      return sum;
    };
    bool best = true;
    for (int64_t j = 0; j < P; ++j) best = best && (j == i || fit(j) < fit(i));
    right += best;
  }
  return static_cast<double>(right) / static_cast<double>(P);
}

// Each key is the query behind a text of all pairs: a row of a batch for each.
double by_attention(const Pairs& p, int64_t window) {
  const int64_t P = p.keys.size(1);
  const auto for_each = [&](const Tensor& t) {
    const Tensor rows = empty({P, P, 1, kSize}, Dtype::f64);
    for (int64_t i = 0; i < P; ++i) rows.slice(0, i, i + 1).copy_from(t);
    return rows;
  };
  const Tensor o = kernels::operation("attention")
                       .forward(kernels::Form::chunkwise,
                                {{"q", p.keys.reshape({P, 1, 1, kSize})},
                                 {"k", for_each(p.keys)},
                                 {"v", for_each(p.values)}},
                                {{"scale", "30"}, {"window", std::to_string(window)}})
                       .at("o");
  return right_part(to_doubles(o), p.values);
}

double by_state(const Pairs& p, const char* name, bool learns) {
  const int64_t P = p.keys.size(1);
  kernels::Tensors in = {{"q", p.keys}, {"k", p.keys}, {"v", p.values}};
  if (learns) in["beta"] = full({1, P, 1}, 1, Dtype::f64);
  const Tensor state = kernels::operation(name)
                           .forward(kernels::Form::chunkwise, in, {{"scale", "1"}})
                           .at("final_state");
  const std::vector<double> S = to_doubles(state), k = to_doubles(p.keys);
  std::vector<double> answers(static_cast<size_t>(P * kSize));
  for (int64_t i = 0; i < P; ++i)
    for (int64_t d = 0; d < kSize; ++d)
      for (int64_t e = 0; e < kSize; ++e)
        answers[static_cast<size_t>(i * kSize + e)] +=
            k[static_cast<size_t>(i * kSize + d)] * S[static_cast<size_t>(d * kSize + e)];
  return right_part(answers, p.values);
}

std::string measure(double budget) {
  std::vector<Curve> curves = {{"sees all", {}, {}, 0},
                               {concat("a window of ", kWindow), {}, {}, 1},
                               {"a state, linear attention", {}, {}, 2},
                               {"a state, delta rule", {}, {}, 3}};
  std::vector<std::vector<std::string>> rows;
  for (int64_t P = 4; P <= 128; P *= 2) {
    std::vector<double> right(curves.size());
    for (uint64_t seed = 1; seed <= kDraws; ++seed) {
      const Pairs p{of_length_one(P, seed, "keys"), of_length_one(P, seed, "values")};
      const std::vector<double> one = {by_attention(p, 0), by_attention(p, kWindow),
                                       by_state(p, "linear", false), by_state(p, "delta", true)};
      for (size_t i = 0; i < one.size(); ++i) right[i] += one[i] / kDraws;
    }
    rows.push_back({std::to_string(P)});
    for (size_t i = 0; i < curves.size(); ++i) {
      curves[i].x.push_back(std::log2(P));
      curves[i].y.push_back(100 * right[i]);
      rows.back().push_back(number_text("%.0f %%", 100 * right[i]));
    }
    rows.back().push_back(std::to_string(2 * P * kSize));
    rows.back().push_back(std::to_string(kSize * kSize));
  }
  return concat(
      "<h3>What each part can look up, without training</h3>\n<p>Measured on the program's "
      "operations as this page was made. "
      "A "
      "text of pairs of a random key and a random value, of ",
      kSize,
      " numbers each, is read; then each key asks for its value. An answer is right if no other "
      "value fits it better (the mean of ",
      kDraws,
      " draws). Softmax searches sharply, with a scale of 30, as a trained model would.</p>\n"
      "<div class=\"pair\">",
      lesson_chart({"right answers, %", "pairs, as a power of 2", curves}),
      lesson_table({"pairs", "sees all", concat("window of ", kWindow), "linear attention",
                    "delta rule", "numbers in a cache of all", "numbers in a state"},
                   rows),
      "</div>\n<p>Up to about as many pairs as a key has numbers, a state of 16 by 16 numbers "
      "answers well. Beyond that, what is not near is found by a layer that sees all, and by no "
      "other. So a hybrid needs a few of these, and the rest can be cheap. (The delta rule writes "
      "with β = 1 here: the last pair is exact, and each correction disturbs older ones a little, "
      "so for keys that come once it is no better than adding. It pays where a key comes again "
      "with a new value.) <code>weft compare RECIPE... --with recipes/tasks/mqar.toml</code> "
      "trains recipes on such a task.</p>\n",
      budget > 0 ? recall_section()
                 : "<p>Nothing was trained for this page (<code>--budget 0</code>).</p>\n");
}

std::vector<Exercise> exercises() {
  return {
      {"One layer of each kind, and a text of 64 tokens ($level = 2$). How many bytes are kept?",
       {{"level", 0, {2}}, {"full", 0, {1}}, {"window", 0, {1}}, {"state", 0, {1}}},
       "answer = bytes",
       {{"answer = bytes / 4", "these are numbers; each has four bytes"},
        {"answer = 4 * (of_full + of_window)", "the state is kept too"},
        {"answer = 4 * (2 * of_full + of_state)", "the window has room for 32 tokens, not 64"}},
       "64 and 32 tokens with a key and a value of 32 numbers, and 2 tables of 16 by 32; times "
       "four"},
      {"The same with a text of twice the length. How many bytes more are kept?",
       {{"level", 0, {2}}, {"full", 0, {1}}, {"window", 0, {1}}, {"state", 0, {1}}},
       "answer = 4 * of_full",
       {{"answer = bytes", "only the layer that sees all keeps more for a longer text"},
        {"answer = 4 * (of_full + of_window)", "the window is full already"}},
       "which of the three layers keeps more for a longer text?"},
      {"Of 48 layers, one in four sees all, and the rest have states whose size hardly matters. By "
       "which factor is the memory smaller than if all of them saw all?",
       {},
       "answer = 4",
       {{"answer = 12", "that is the number of layers that see all"},
        {"answer = 48", "twelve layers keep everything"},
        {"answer = 36 / 48", "that is the part that is saved"}},
       "12 layers of 48 keep what grows"},
      {"A state has 2 heads with tables of 16 by 32 numbers. After how many tokens has a layer of "
       "width 32 that sees all as many numbers in its cache?",
       {},
       "answer = 2 * 16 * 32 / (2 * 32)",
       {{"answer = 2 * 16 * 32 / 32", "a token has a key and a value, 32 numbers each"},
        {"answer = 16 * 32 / (2 * 32)", "there are two heads"}},
       "the state has 1024 numbers; a token in the cache has 64"},
      {"In a text of 64 tokens, how many keys does a token see on average in a layer with a window "
       "of "
       "16?",
       {{"level", 0, {2}}},
       "answer = 16 - 16 * 15 / (2 * 64)",
       {{"answer = 16", "the first fifteen tokens see fewer"},
        {"answer = 65 / 2", "that is without a window"},
        {"answer = 15 - 15 * 14 / (2 * 64)", "the window counts the token itself"}},
       "W - W (W - 1) / (2 T)"}};
}

Lesson make() {
  Lesson l;
  l.name = "hybrids";
  l.title = "Hybrids: what each part is for";
  l.summary = "A few layers that see everything, among many that cost the same everywhere.";
  l.first = {"attention", "window", "retention", "gated_delta"};
  l.problem = kProblem;
  l.names = {{"bytes", "Generation::bytes", "layers/model.cpp", "what a generation keeps"},
             {"more", "flops_per_token", "layers/model.h", "operations of a token at a length"},
             {"near", "W - W * (W - 1) / (2 * n)", "layers/attention.cpp", "keys seen in a window"},
             {"full", "pattern", "recipes/jamba.toml", "which layers a recipe has, in order"}};
  l.constants = {{"full", 1},   {"window", 1}, {"state", 2},  {"level", 4},
                 {"D", kWidth}, {"H", kHeads}, {"W", kWindow}};
  l.sliders = {{.label = "layers that see all", .name = "full", .low = 0, .high = 4, .step = 1},
               {.label = "layers with a window", .name = "window", .low = 0, .high = 4, .step = 1},
               {.label = "layers with a state", .name = "state", .low = 0, .high = 4, .step = 1},
               {.label = "$level$: the text has 16 tokens times 2 to this power",
                .name = "level",
                .low = 0,
                .high = 8,
                .step = 1}};
  l.forms = forms();
  l.experiments = experiments();
  l.recipe = R"(
[model]
width = 32
layers = 3
pattern = ["near", "gated_delta", "all"]
context = 256
mlp = "none"
[near]
type = "attention"
heads = 2
window = 6
[gated_delta]
heads = 2
[all]
type = "attention"
heads = 2
)";
  l.measure = measure;
  l.exercises = exercises();
  return l;
}

const RegisteredLesson registered(70, make);

}  // namespace
}  // namespace weft::train
