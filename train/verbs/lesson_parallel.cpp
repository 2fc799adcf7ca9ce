// The lesson on data parallelism: one tree of sums, slices, and bytes on the wire. Its numbers are
// those of the classes that a run of many ranks uses.
#include <cmath>
#include <cstring>

#include "core/toml.h"
#include "core/units.h"
#include "kernels/contract/operation.h"
#include "kernels/optimizer/adamw.h"
#include "layers/model.h"
#include "train/gradients.h"
#include "train/lessons/lesson.h"
#include "train/lessons/lesson_sections.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>A step of training reads some rows of text, finds by how much the loss would change with
each weight, and moves all weights a little. With several processors the rows can be shared
out: each <b>rank</b> (a process with a processor of its own) holds all weights, reads its own
rows, and has gradients of its own. The gradients are then added up. This is <b>data
parallelism</b>. Three questions must be answered, and this page answers them as the program
does.</p>
<ul>
<li><b>In which order are gradients added?</b> On paper it does not matter. In a computer
(a + b) + c and a + (b + c) differ in the last digits, because each sum is rounded. If
the order depends on the number of ranks, so do the losses, and a fault that shows on eight
processors cannot be looked for on one.</li>
<li><b>Who updates a weight?</b> If all ranks update all weights, each holds the optimizer's
two numbers for every weight. That is twice the model, over and over the same.</li>
<li><b>What travels?</b> The wire between ranks is slow, so bytes are counted.</li>
</ul>
<p>The rows of a step are first cut into $S$ <b>shards</b>, whatever computes them. Each shard
has a gradient. Rank $r$ of $n$ computes $S / n$ neighbouring shards. Below, the gradient of a
shard is one number; in a model it is one for each weight.</p>
)html";

// What the program's Gradients make of shards of one number each, as one rank.
double summed(const std::vector<double>& shards, Dtype dtype) {
  const autograd::Var leaf = autograd::Var::leaf(full({1}, 0, dtype));
  const std::vector<layers::Parameter> parameters = {{"weight", leaf, leaf.value()}};
  const Slices slices(parameters, 1);
  Ranks alone;
  Gradients gradients(parameters, slices, alone, static_cast<int64_t>(shards.size()));
  gradients.begin_step();
  for (const double shard : shards) {
    gradients.begin_shard();
    leaf.grad().fill(shard);
    gradients.end_shard();
  }
  gradients.end_step();
  return to_doubles(leaf.grad())[0];
}

std::vector<double> shards_of(const Values& n) {
  std::vector<double> shards;
  for (const auto& [index, v] : n.at("grad")) shards.push_back(v.at[0]);
  return shards;
}

std::vector<double> part(const std::vector<double>& all, size_t begin, size_t count) {
  const auto from = all.begin() + static_cast<std::ptrdiff_t>(begin);
  return {from, from + static_cast<std::ptrdiff_t>(count)};
}

int64_t ranks_of(const Values& n) {
  return int64_t{1} << static_cast<int64_t>(n.at("level").at({}).at[0]);
}

Values tree_of(const Values& n) {
  const std::vector<double> shards = shards_of(n);
  Values y;
  for (size_t count = 1; count <= shards.size(); count *= 2)
    for (size_t begin = 0; begin < shards.size(); begin += count)
      y["node"][{static_cast<int64_t>(begin) + 1, static_cast<int64_t>(count)}] =
          number_value(summed(part(shards, begin, count), Dtype::f64));
  y["total"][{}] = number_value(summed(shards, Dtype::f64));
  return y;
}

Values ranks_sums(const Values& n) {
  const std::vector<double> shards = shards_of(n);
  const auto ranks = static_cast<size_t>(ranks_of(n));
  const size_t each = shards.size() / ranks;
  size_t most = 0;
  nodes_within(0, static_cast<int64_t>(each), &most);
  Values y;
  for (size_t r = 0; r < ranks; ++r)
    y["partial"][{static_cast<int64_t>(r) + 1}] =
        number_value(summed(part(shards, r * each, each), Dtype::f64));
  y["held"][{}] = number_value(static_cast<double>(most));
  y["total"][{}] = number_value(summed(shards, Dtype::f64));
  return y;
}

// Where the program cuts parameters of these sizes, and what each rank then sends in a step.
struct Cut {
  std::vector<double> border, own;
};
Cut cut_of(const std::vector<layers::Parameter>& parameters, int ranks) {
  const Slices slices(parameters, ranks);
  std::vector<double> before = {0};
  for (const layers::Parameter& p : parameters)
    before.push_back(before.back() + static_cast<double>(p.var.value().numel()));
  Cut cut;
  for (int r = 0; r <= ranks; ++r)
    cut.border.push_back(before[slices.border(r).parameter] +
                         static_cast<double>(slices.border(r).begin));
  for (int r = 0; r < ranks; ++r) {
    double own = 0;
    for (const View& v : slices.of(r)) own += static_cast<double>(v.end - v.begin);
    cut.own.push_back(own);
  }
  return cut;
}

Values slices_of(const Values& n) {
  std::vector<layers::Parameter> parameters;
  for (const auto& [index, v] : n.at("size")) {
    const Tensor value = empty({static_cast<int64_t>(v.at[0])}, Dtype::f32, kMeta);
    parameters.push_back({"weight", autograd::Var::leaf(value), value});
  }
  const auto ranks = static_cast<int>(ranks_of(n));
  const Cut cut = cut_of(parameters, ranks);
  Values y;
  for (int r = 1; r <= ranks; ++r) {
    const auto at = static_cast<size_t>(r);
    y["border"][{r}] = number_value(cut.border[at]);
    y["own"][{r}] = number_value(cut.own[at - 1]);
  }
  return y;
}

std::vector<LessonForm> forms() {
  return {{"The order of the sums: one tree",
           R"html(
<p>Neighbours are added in pairs, then pairs of pairs, up to the whole. $node[s, m]$ is the sum
of the $m$ shards from shard $s$ on. The order is fixed by the shards' numbers alone. A tree has
a second gain: a number passes few additions, here 4 and not 15, so less is rounded.</p>)html",
           R"(for s = 1 .. S
  node[s, 1] = grad[s]
for height = 1 .. floor(log(S) / log(2) + 0.5)
  m = floor(exp(height * log(2)) + 0.5)   # 2, 4, 8, 16
  for b = 1 .. S / m
    s = (b - 1) * m + 1
    node[s, m] = node[s, m / 2] + node[s + m / 2, m / 2]   # two neighbours of one size
total = node[1, S]
)",
           tree_of},
          {"The same tree on many ranks",
           R"html(
<p>If $n$ is a power of two, the shards of a rank are one branch of the tree. The rank adds them
by itself, as they come: two sums of one size are added as soon as both are there, like the
carries when one counts in binary. So it never holds more than $held$ sums at a time. What is
left of the tree, above the branches, is the sum over ranks. No number is added in another order
than on one rank, so no bit differs.</p>)html",
           R"(n = floor(exp(level * log(2)) + 0.5)   # ranks: 1, 2, 4, 8, 16
each = S / n   # shards of a rank
for r = 1 .. n
  partial[r] = sum(s = (r - 1) * each + 1 .. r * each: grad[s])   # along its branch of the tree
held = 1 + floor(log(each) / log(2) + 0.5)   # sums held at a time
total = sum(r = 1 .. n: partial[r])   # along what is left of the tree
)",
           ranks_sums},
          {"Slices: who updates what",
           R"html(
<p>All weights are laid out one behind the other and cut into as many <b>slices</b> as there are
ranks. The owner of a slice gets the sums of the others for it, adds them up, updates its
weights, and sends the new ones to all. So each rank holds the optimizer's numbers for its slice
alone. Cuts fall on borders of pieces of $cut$ numbers, because other sums are made piece by piece
and must not change with the number of ranks. A border goes to the first piece that begins
behind its share of the whole.</p>)html",
           R"(n = floor(exp(level * log(2)) + 0.5)
total = sum(i = 1 .. P: size[i])   # weights in all
for r = 1 .. n
  border[r] = 0
before = 0
for i = 1 .. P   # parameters
  for m = 0 .. ceil(size[i] / cut) - 1   # their pieces
    start = before + m * cut
    long = smaller(cut, size[i] - m * cut)
    for r = 1 .. n
      border[r] = border[r] + long * above(r * total / n, start)   # the piece lies before it
  before = before + size[i]
border[0] = 0
for r = 1 .. n
  own[r] = border[r] - border[r - 1]   # the slice of rank $r$
  sends[r] = 4 * (total - own[r]) + 4 * (n - 1) * own[r]   # bytes: gradients, and new weights
)",
           slices_of}};
}

// The sum of the shards where each rank adds its own one behind another, and then the ranks'.
float in_a_row(const std::vector<double>& shards, size_t ranks) {
  const size_t each = shards.size() / ranks;
  float total = 0;
  for (size_t r = 0; r < ranks; ++r) {
    float own = 0;
    for (size_t s = r * each; s < (r + 1) * each; ++s) own += static_cast<float>(shards[s]);
    total += own;
  }
  return total;
}

float by_tree(const std::vector<double>& shards, size_t ranks) {
  const size_t each = shards.size() / ranks;
  std::vector<double> sums;
  for (size_t r = 0; r < ranks; ++r)
    sums.push_back(summed(part(shards, r * each, each), Dtype::f32));
  return static_cast<float>(summed(sums, Dtype::f32));
}

std::string bits_of(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  char text[9];
  std::snprintf(text, sizeof text, "%08x", bits);
  return concat(with_minus(number_text("%.9g", x)), " <code>", text, "</code>");
}

std::string sums_table() {
  const std::vector<double> shards =
      to_doubles(kernels::normal({16}, 1, "shards").to(Dtype::f32).to(Dtype::f64));
  std::vector<std::vector<std::string>> rows;
  for (const size_t ranks : {1, 2, 4, 8, 16})
    rows.push_back(
        {std::to_string(ranks), bits_of(in_a_row(shards, ranks)), bits_of(by_tree(shards, ranks))});
  return concat(
      "<h3>The bits of a sum</h3>\n<p>Sixteen shards, drawn at random, added in f32 as this page "
      "was "
      "made: once in a row (each rank its own, then the ranks), and once by the program's tree. "
      "Beside each sum stand its 32 bits.</p>\n",
      lesson_table({"ranks", "in a row", "by the tree"}, rows));
}

std::string wire_table() {
  const layers::Model model(
      toml_from_text(
          "[model]\nwidth = 128\nlayers = 4\npattern = [\"gated_delta\"]\ncontext = 256\n"
          "[gated_delta]\nheads = 4\n[mlp]\nwidth = 256\n",
          "the lesson's recipe"),
      256, Dtype::f32, kMeta, 1);
  const auto P = static_cast<double>(model.parameter_count());
  std::vector<std::vector<std::string>> rows;
  for (const int ranks : {1, 2, 4, 8}) {
    const Cut cut = cut_of(model.parameters(), ranks);
    double own = 0;
    for (const double x : cut.own) own = std::max(own, x);
    rows.push_back({std::to_string(ranks), count_text(own), bytes_text(8 * own),
                    bytes_text(4 * (P - own)), bytes_text(4 * own * (ranks - 1))});
  }
  return concat(
      "<h3>Slices of a model</h3>\n<p>A model of four layers of the gated delta rule with ",
      count_text(P),
      " weights in f32, cut by the program. The rank with the largest slice holds and sends, in "
      "each step:</p>\n",
      lesson_table({"ranks", "weights of its slice", "optimizer holds", "gradients sent",
                    "new weights sent"},
                   rows),
      "<p>Each rank sends every gradient but those of its own slice once, to their owners, and the "
      "new weights of its slice once to every other rank. <code>weft train recipe.toml --ranks "
      "2</code> "
      "trains on two processes of this machine, with the numbers of one.</p>\n");
}

std::string measure(double) { return sums_table() + wire_table(); }

std::vector<Exercise> exercises() {
  return {
      {"Let the gradient of shard 3 be 5. What is $node[1, 4]$?",
       {{"grad", 3, {5}}},
       "answer = node[1, 4]",
       {{"answer = node[1, 2]", "this is the sum of two shards; 4 shards begin with shard 1"},
        {"answer = total", "this is the sum of all shards"},
        {"answer = node[3, 2]", "this is the right half of what is asked"}},
       "add the gradients of shards 1 to 4"},
      {"How many additions does a gradient pass on its way to the sum of 16 shards, in the tree?",
       {},
       "answer = floor(log(S) / log(2) + 0.5)",
       {{"answer = 15", "that is the first shard's way if they are added one behind another"},
        {"answer = 8", "pairs, then pairs of pairs: the number of sums halves each time"},
        {"answer = 5", "16 halves to 1 in four steps"}},
       "how often can 16 be halved until 1 is left?"},
      {"With 4 ranks, what is the sum $partial[3]$ of the third one?",
       {{"level", 0, {2}}},
       "answer = sum(s = 9 .. 12: grad[s])",
       {{"answer = sum(s = 5 .. 8: grad[s])", "these are the shards of the second rank"},
        {"answer = sum(s = 13 .. 16: grad[s])", "these are the shards of the fourth rank"}},
       "each rank has 4 shards; the third one begins with shard 9"},
      {"A rank adds 8 shards of its own, as they come. How many sums does it hold at most?",
       {},
       "answer = 1 + floor(log(8) / log(2) + 0.5)",
       {{"answer = 8", "two sums of one size are added as soon as both are there"},
        {"answer = 3", "before the eighth is added it holds sums of 4, 2 and 1 and the eighth"},
        {"answer = 2", "a sum of four must wait for the next four"}},
       "write down, after each shard, which sizes of sums are held; look at the moment before "
       "shard "
       "8 is added to its neighbour"},
      {"A model has a million weights in f32, and there are 4 ranks with slices of one size. How "
       "many bytes of gradients does a rank send in a step?",
       {},
       "answer = 4 * 1000000 * 3 / 4",
       {{"answer = 4 * 1000000", "its own slice stays where it is"},
        {"answer = 4 * 1000000 / 4", "this is one slice; three of them go out"},
        {"answer = 1000000 * 3 / 4", "a number in f32 has four bytes"}},
       "it sends every slice but its own, each to one rank; a number has four bytes"}};
}

Lesson make() {
  Lesson l;
  l.name = "parallel";
  l.title = "Data parallelism with the same bits";
  l.summary = "Ranks share the rows of a step: one tree of sums, a slice each, few bytes.";
  l.first = {"attention"};
  l.problem = kProblem;
  l.names = {{"node[s, m]", "TreeNode", "train/gradients.h", "the sum of neighbouring shards"},
             {"S", "train.accumulate", "train/gradients.h", "shards of a step"},
             {"held", "nodes_within", "train/gradients.h", "the sums that a rank holds"},
             {"border[r]", "border", "train/slices.h", "where the slice behind rank r begins"},
             {"cut", "kAdamwCut", "kernels/optimizer/adamw.h", "numbers of a piece"}};
  l.example = {{"grad",
                {{0.5},
                 {-1},
                 {2},
                 {0.25},
                 {1},
                 {1.5},
                 {-0.5},
                 {0.75},
                 {-2},
                 {0.5},
                 {1},
                 {3},
                 {-1.5},
                 {0.25},
                 {0.5},
                 {1}}},
               {"size", {{40000}, {16384}, {100}, {70000}}}};
  l.constants = {
      {"S", 16}, {"P", 4}, {"level", 1}, {"cut", static_cast<double>(kernels::kAdamwCut)}};
  l.sliders = {{.label = "gradient of shard 3",
                .name = "grad",
                .token = 3,
                .low = -4,
                .high = 4,
                .step = 0.5},
               {.label = "$level$: the ranks are 2 to this power",
                .name = "level",
                .low = 0,
                .high = 4,
                .step = 1}};
  l.forms = forms();
  l.measure = measure;
  l.exercises = exercises();
  return l;
}

const RegisteredLesson registered(90, make);

}  // namespace
}  // namespace weft::train
