// The lesson on the state as a learner: what mechanisms with a state do is gradient descent, one
// step a token, on a regression that the text poses.
#include <algorithm>
#include <cmath>

#include "core/units.h"
#include "train/lessons/lesson.h"
#include "train/lessons/lesson_sections.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr const char* kProblem = R"html(
<p>A model that was trained can still learn from the text that it reads: give it a few
examples of a task, and it goes on with the task. Its weights do not change while it reads.
What changes is the <b>state</b>. This page shows that the state is a small model of its own,
and that reading trains it.</p>
<p>The task is the oldest one: <b>regression</b>. Pairs of numbers $x$ and $y$ come one after
the other. Find the line $y = slope * x + start$ that goes through them, and answer for an
$x$ that was not seen. As keys and values:</p>
<ul>
<li>the key $k$ is $vector(x, 1)$, the number and a 1, divided by its length $n = sqrt(x * x +
1)$, so that it has length one;</li>
<li>the value $v$ is $y$, the answer, divided by the same length;</li>
<li>the state $w$ has two numbers, the slope and the start that it believes in. Its answer for
a key is $dot(w, k)$; times $n$ again, that is its answer for $x$. With values of one
entry the table $S$ of the other lessons is this one column.</li>
</ul>
<p>Learning means: choose a <b>loss</b> that says how bad the answer is, take its gradient
with respect to $w$, and go a step against it. This is <b>gradient descent</b>. With one step
for each example, as it comes, it is called <b>online</b>. Each mechanism turns out to be one
choice of the loss:</p>
<ul>
<li>linear attention (and its elder sister, <b>fast weights</b>): the loss is the negative
product of value and answer. It falls without end as the answer grows;</li>
<li>the delta rule: the loss is half the square of the error. It has a lowest point;</li>
<li>the gated delta rule: the same, and every weight shrinks a little before each step. In
training of models this is known as <b>weight decay</b>.</li>
</ul>
)html";

constexpr const char* kPairs = R"(for t = 1 .. T
  n = sqrt(x[t] * x[t] + 1)
  k[t] = vector(x[t], 1) / n   # the key has length one
  v[t] = y[t] / n
)";

double of(const Values& n, const char* name, int64_t t) { return n.at(name).at({t}).at[0]; }
double of(const Values& n, const char* name) { return n.at(name).at({}).at[0]; }

// What the operation's state holds after each token: its entries, read with unit queries.
Values weights_of(const Values& n, const char* name, bool learns, bool fades) {
  const auto T = static_cast<int64_t>(of(n, "T"));
  Tensors in;
  in["k"] = empty({1, T, 1, 2}, Dtype::f64);
  in["v"] = empty({1, T, 1, 1}, Dtype::f64);
  for (int64_t t = 0; t < T; ++t) {
    const double x = of(n, "x", t + 1), length = std::sqrt(x * x + 1);
    in["k"].data<double>()[2 * t] = x / length;
    in["k"].data<double>()[2 * t + 1] = 1 / length;
    in["v"].data<double>()[t] = of(n, "y", t + 1) / length;
  }
  if (learns) in["beta"] = full({1, T, 1}, of(n, "beta"), Dtype::f64);
  if (fades) in["g"] = full({1, T, 1}, of(n, "g"), Dtype::f64);
  Values w;
  for (int64_t t = 1; t <= T; ++t) w["w"][{t}] = vector_value({0, 0});
  for (int64_t entry = 0; entry < 2; ++entry) {
    in["q"] = full({1, T, 1, 2}, 0, Dtype::f64);
    for (int64_t t = 0; t < T; ++t) in["q"].data<double>()[2 * t + entry] = 1;
    const std::vector<double> o =
        to_doubles(operation(name).forward(Form::naive, in, {{"scale", "1"}}).at("o"));
    for (int64_t t = 0; t < T; ++t)
      w["w"][{t + 1}].at[static_cast<size_t>(entry)] = o[static_cast<size_t>(t)];
  }
  return w;
}

std::vector<LessonForm> forms() {
  return {{"Linear attention: a loss without a bottom",
           R"html(
<p>The loss is $-v * dot(w, k)$: the more the answer points the way of the value, the lower.
Its gradient is $-v * k$, whatever $w$ is. So each step adds the same, also when the answer is
right long since. The step against the gradient, with the learning rate 1, is linear
attention's write.</p>)html",
           concat(kPairs, R"(w[0] = zeros(2)   # slope and start, as the state believes
for t = 1 .. T
  answer[t] = dot(w[t-1], k[t])   # before the token is learned
  loss[t] = -v[t] * answer[t]
  dw = -v[t] * k[t]   # gradient of the loss: $w$ is not in it
  w[t] = w[t-1] - dw
)"),
           [](const Values& n) { return weights_of(n, "linear", false, false); }},
          {"The delta rule: the square of the error",
           R"html(
<p>The loss is half the square of what the answer misses. Its gradient is $-error * k$: no
error, no step. The learning rate is $beta$. Since keys have length one, a step with $beta =
1$ makes the answer for this key right; more than 2 makes it worse than it was.</p>)html",
           concat(kPairs, R"(w[0] = zeros(2)
for t = 1 .. T
  error[t] = v[t] - dot(w[t-1], k[t])
  loss[t] = error[t] * error[t] / 2
  dw = -error[t] * k[t]   # gradient of the loss
  w[t] = w[t-1] - beta * dw
)"),
           [](const Values& n) { return weights_of(n, "delta", true, false); }},
          {"The gated delta rule: old knowledge fades",
           R"html(
<p>Before the step every weight is multiplied by $exp(g)$, a number below one. What is not
confirmed is forgotten. That costs something while the truth stands still, and pays when it
changes.</p>)html",
           concat(kPairs, R"(w[0] = zeros(2)
for t = 1 .. T
  kept = exp(g) * w[t-1]   # weight decay
  error[t] = v[t] - dot(kept, k[t])
  loss[t] = error[t] * error[t] / 2
  dw = -error[t] * k[t]
  w[t] = kept - beta * dw
)"),
           [](const Values& n) { return weights_of(n, "delta", true, true); }}};
}

std::vector<Experiment> experiments() {
  return {{"Your line, and what the states believe",
           R"html(
<p>Twenty points of a line that you choose come in a mixed order, each once. The dots are the
points; the lines are the answers of the two states after the last point, over all $x$ from
−1 to 1. Turn up the noise, and the learning rate: the delta rule with a large $beta$ believes
the last points too much. Linear attention adds value times key, times the same
$beta$, and does not look at its answer. It finds the direction, and shoots past:
it never asks whether the answer is right already.</p>)html",
           {{"slope", "slope", -2, 2, 0.1, 1.2},
            {"start", "start", -2, 2, 0.1, -0.5},
            {"noise", "noise", 0, 2, 0.1, 0.2},
            {"$beta$", "beta", 0, 2, 0.05, 0.4}},
           R"(for j = 1 .. 20
  x[j] = (j - 10.5) / 9.5   # from −1 to 1
  u = j * j * 0.6180339887
  point[j] = slope * x[j] + start + noise * (u - floor(u) - 0.5)
w = zeros(2)
f = zeros(2)
for t = 1 .. 20
  now = 1 + 7 * t - 20 * floor(7 * t / 20)   # the order in which they come
  n = sqrt(x[now] * x[now] + 1)
  key = vector(x[now], 1) / n
  w = w + beta * (point[now] / n - dot(w, key)) * key
  f = f + beta * (point[now] / n) * key
for j = 1 .. 20
  delta[j] = dot(w, vector(x[j], 1))
  fast[j] = dot(f, vector(x[j], 1))
)",
           "x, as one of 20 places",
           "y",
           {{"points", "point", true}, {"delta rule", "delta"}, {"linear attention", "fast"}}},
          {"The truth changes",
           R"html(
<p>Sixty points; from point 31 on, the slope is another one. The curves are the slope in each
state. The delta rule turns round by itself, because it learns from errors: a larger $beta$
turns faster. Linear attention with the same $beta$ keeps adding, and the old slope stays in its
sum. A decay alone helps it to forget, but where its sum comes to rest is not the
slope.</p>)html",
           {{"second slope", "second", -2, 2, 0.1, -1},
            {"$beta$", "beta", 0, 2, 0.05, 0.3},
            {"kept at each token", "kept", 0.7, 1, 0.01, 0.97}},
           R"(w[0] = zeros(2)
f[0] = zeros(2)
m[0] = zeros(2)
for t = 1 .. 60
  x = 2 * (t * 0.6180339887 - floor(t * 0.6180339887)) - 1
  n = sqrt(x * x + 1)
  key = vector(x, 1) / n
  true[t] = 1 + (second - 1) * above(t, 30)
  v = true[t] * x / n
  w[t] = w[t-1] + beta * (v - dot(w[t-1], key)) * key
  m[t] = kept * w[t-1] + beta * (v - kept * dot(w[t-1], key)) * key
  f[t] = kept * f[t-1] + beta * v * key
  delta[t] = at(w[t], 1)
  gated[t] = at(m[t], 1)
  fast[t] = at(f[t], 1)
)",
           "token",
           "slope",
           {{"the truth", "true", true},
            {"delta rule", "delta"},
            {"gated delta rule", "gated"},
            {"linear attention with decay", "fast"}}}};
}

// Random regressions of width K that the operations learn as they read: the square of the error
// that is left before each token, over that of answering 0.
constexpr int64_t kRows = 64, kTokens = 96, kWidth = 8;

struct Regression {
  Tensor k, v;
};
Regression regression(bool changes) {
  Regression r{normal({kRows, kTokens, 1, kWidth}, 1, "keys"),
               empty({kRows, kTokens, 1, 1}, Dtype::f64)};
  const Tensor truth = normal({kRows, 2, kWidth}, 1, "truth");
  const View<double> k = view<double>(r.k), v = view<double>(r.v), w = view<double>(truth);
  for (int64_t b = 0; b < kRows; ++b)
    for (int64_t t = 0; t < kTokens; ++t) {
      double square = 0, answer = 0;
      for (int64_t d = 0; d < kWidth; ++d) square += k(b, t, 0, d) * k(b, t, 0, d);
      for (int64_t d = 0; d < kWidth; ++d) {
        k(b, t, 0, d) /= std::sqrt(square);
        answer += w(b, changes && t >= kTokens / 2, d) * k(b, t, 0, d);
      }
      v(b, t, 0, 0) = answer;
    }
  return r;
}

Curve learned(const std::string& label, const Regression& r, const char* name, double beta,
              double keep, int colour) {
  Tensors in = {{"q", empty(r.k.shape(), Dtype::f64)}, {"k", r.k}, {"v", r.v}};
  // Token t reads with the key of t + 1: what the state knows before that is written.
  in["q"].slice(1, 0, kTokens - 1).copy_from(r.k.slice(1, 1, kTokens));
  in["q"].slice(1, kTokens - 1, kTokens).copy_from(r.k.slice(1, 0, 1));
  if (beta > 0) in["beta"] = full({kRows, kTokens, 1}, beta, Dtype::f64);
  if (keep < 1) in["g"] = full({kRows, kTokens, 1}, std::log(keep), Dtype::f64);
  const Tensor read = operation(name).forward(Form::chunkwise, in, {{"scale", "1"}}).at("o");
  const View<double> o = view<double>(read), v = view<double>(r.v);
  Curve c{label, {}, {}, colour};
  for (int64_t t = 1; t < kTokens; ++t) {
    double missed = 0, all = 0;
    for (int64_t b = 0; b < kRows; ++b) {
      // A sum of t products of keys of length one is t / K times the truth.
      const double factor =
          beta > 0 ? 1 : std::min(1.0, static_cast<double>(kWidth) / static_cast<double>(t));
      const double error = v(b, t, 0, 0) - factor * o(b, t - 1, 0, 0);
      missed += error * error;
      all += v(b, t, 0, 0) * v(b, t, 0, 0);
    }
    c.x.push_back(static_cast<double>(t + 1));
    c.y.push_back(missed / all);
  }
  return c;
}

std::string measure(double) {
  std::string s = concat(
      "<p>The same with more numbers: ", kRows, " random regressions of ", kWidth, " weights and ",
      kTokens, " tokens, read by the program's own operations as this page was made. The curves ",
      "show how much of the square of the answer is still missed before each token, from token 2 "
      "on: 1 "
      "is as bad as an answer of 0, and 0 is no error. A curve passes 1 where its answers are "
      "worse than 0: other keys disturb them, or they are still those of the old truth. Linear "
      "attention's sum of t "
      "products is divided by t / ",
      kWidth,
      " (once that is more than 1), because its mean is so many times the truth. It still learns "
      "slowly: keys that point the same way disturb each other.</p>\n<div class=\"pair\">");
  for (const bool changes : {false, true}) {
    const Regression r = regression(changes);
    s += lesson_chart({concat("missed", changes ? ", the truth changes at token 49" : ""),
                       "token",
                       {learned("linear attention", r, "linear", 0, 1, 0),
                        learned("delta rule, β = 1", r, "delta", 1, 1, 1),
                        learned("gated delta rule, 0.95 kept", r, "delta", 1, 0.95, 2)}});
  }
  return s + "</div>\n";
}

std::vector<Exercise> exercises() {
  return {
      {"Let the first point be $x[1] = 1$, $y[1] = 2$. What is the slope in the state of linear "
       "attention after it?",
       {{"x", 1, {1}}, {"y", 1, {2}}},
       "answer = at(w[1], 1)",
       {{"answer = 2", "both the key and the value are divided by the root of x^2 + 1"},
        {"answer = 2 / sqrt(2)", "the value is divided by the root of 2, and so is the key"}},
       "the slope is entry 1 of v k: y over the root of 2, times x over the root of 2"},
      {"Let all points be $x = 0$, $y = 1$. What is the start (entry 2) in the state of linear "
       "attention after all six?",
       {{"x", 0, {0}}, {"y", 0, {1}}},
       "answer = at(w[6], 2)",
       {{"answer = 1", "linear attention does not look whether it knows the answer already"}},
       "every point adds the same: value 1 times key (0, 1)"},
      {"The same points and the delta rule with $beta = 0.5$: what is the start after three of "
       "them?",
       {{"x", 0, {0}}, {"y", 0, {1}}, {"beta", 0, {0.5}}},
       "answer = 1 - 0.5 * 0.5 * 0.5",
       {{"answer = 3 * 0.5",
         "each step takes half of what is still missing, not half of the value"},
        {"answer = 1", "half of the error is left after each step"},
        {"answer = 0.5 * 0.5 * 0.5", "this is the error that is left"}},
       "the error halves at each step: 1, 1/2, 1/4, .."},
      {"The gated delta rule, with $exp(g) = 0.9$ and $beta = 0.5$. Let the start in the state be "
       "exactly 1. The next point is $x = 0$, $y = 1$. What is the start after it? (With the same "
       "point for ever it settles lower, at $0.5 / (1 - 0.9 * 0.5)$: the price of fading.)",
       {},
       "answer = 0.9 + 0.5 * (1 - 0.9)",
       {{"answer = 1", "the state fades first, and then half of what is missing comes back"},
        {"answer = 0.9", "this has faded; now the step follows"},
        {"answer = 0.5 / (1 - 0.9 * 0.5)",
         "there it settles after many such points; this is the first after exactly 1"},
        {"answer = 0.9 + 0.5", "the step is half of the error, and the error is small"}},
       "fade to 0.9, see that 0.1 is missing, and add half of it"},
      {"The delta rule with $beta = 2$ has the error 0.3 at a key of length one. The same point "
       "comes once more. What is the error then?",
       {},
       "answer = 0.3 - 2 * 0.3",
       {{"answer = 0", "that would be beta = 1"},
        {"answer = 0.3", "as large as before, but on which side?"},
        {"answer = 0.3 + 2 * 0.3", "the step goes against the error"}},
       "a step takes beta times the error off the error"}};
}

Lesson make() {
  Lesson l;
  l.name = "state";
  l.title = "The state is a learner";
  l.summary = "Reading a text is gradient descent on a regression, one step a token.";
  l.first = {"linear", "delta", "gated_delta"};
  l.problem = kProblem;
  l.names = {{"k[t]", "k", "kernels/delta/delta.h", "the key; here the number x and a 1"},
             {"v[t]", "v", "kernels/delta/delta.h", "the value; here of one entry"},
             {"w[t]", "final_state", "kernels/delta/delta.h", "the state: one column of it"},
             {"error[t]", "error", "kernels/delta/reference.h", "what the answer misses"},
             {"beta", "beta", "kernels/delta/delta.h", "the learning rate, 0 to 2"},
             {"g", "g", "kernels/delta/delta.h", "the logarithm of what is kept"}};
  l.example = {{"x", {{-1}, {0.5}, {1}, {-0.5}, {0}, {0.8}}},
               {"y", {{-1.7}, {0.3}, {0.6}, {-1}, {-0.5}, {0.5}}}};
  l.constants = {{"T", 6}, {"beta", 0.6}, {"g", -0.1}};
  l.sliders = {{.label = "$y[2]$", .name = "y", .token = 2, .low = -3, .high = 3},
               {.label = "$y[4]$", .name = "y", .token = 4, .low = -3, .high = 3},
               {.label = "$beta$", .name = "beta", .low = 0, .high = 2},
               {.label = "$g$", .name = "g", .low = -1, .high = 0}};
  l.forms = forms();
  l.experiments = experiments();
  l.measure = measure;
  l.exercises = exercises();
  return l;
}

const RegisteredLesson registered(60, make);

}  // namespace
}  // namespace weft::train
