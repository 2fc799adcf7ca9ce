// The lesson on attention within a sliding window.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Softmax attention compares each token with all tokens before it. Of a long text that is
too much: at token 100 000 there are 100 000 keys to look at, and all of them must be kept.
Yet most of what a token needs stands close by: the beginning of its word, the verb of its
sentence.</p>
<p>A <b>window</b> takes this at its word. Token $i$ sees itself and the $W - 1$ tokens
before it, and nothing else. Every token then costs the same, wherever it stands. A program
that writes text keeps $W$ keys and values in a ring: a new token overwrites the oldest
one.</p>
<p>The price is that what lies further back is gone, at least for this layer. A second layer
with the same window sees results of the first, and those know $W - 1$ tokens more. So a
model of $L$ such layers can reach back $L * (W - 1)$ tokens. But a fact must be handed on
from layer to layer to come that far. The experiment in section 3 shows how much of it is
left when every layer takes a plain mean.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: the sums begin later",
           R"html(
<p>The equations of softmax attention with one change: where the sums began at token 1, they
begin at $low$, the first token of the window.</p>)html",
           R"(for i = 1 .. T
  low[i] = larger(1, i - W + 1)   # the first token that token $i$ sees
  for j = low[i] .. i
    x[i, j] = scale * dot(q[i], k[j])
  lse[i] = log(sum(j = low[i] .. i: exp(x[i, j])))   # over the window alone
  for j = low[i] .. i
    p[i, j] = exp(x[i, j] - lse[i])   # the weights of the window add up to one
  o[i] = sum(j = low[i] .. i: p[i, j] * v[j])
)"},
          {"Recurrent: a ring of keys and values",
           R"html(
<p>What a program keeps while it writes text. The ring has $W$ places; token $i$ takes the
place $slot$ of the token that has just left the window. The order in the ring does not
matter, because a softmax is a sum.</p>)html",
           R"(for i = 1 .. T
  slot[i] = i - W * floor((i - 1) / W)   # 1, 2, .. W, and 1 again
  key[slot[i]] = k[i]   # what stood here is forgotten
  value[slot[i]] = v[i]
  for r = 1 .. smaller(i, W)
    x[r] = scale * dot(q[i], key[r])
  most = largest(r = 1 .. smaller(i, W): x[r])
  total = sum(r = 1 .. smaller(i, W): exp(x[r] - most))
  o[i] = sum(r = 1 .. smaller(i, W): exp(x[r] - most) * value[r]) / total
  lse[i] = most + log(total)
)"},
          {"Chunkwise: tiles that lie outside are never touched",
           R"html(
<p>The stream over tiles of $C$ keys, as in the lesson before. A tile that no query of the
block sees is left out, and costs nothing. A tile that the window cuts is computed whole, and
what is outside is masked. So a window that is no longer than a tile saves less than it
promises. Here $C = 2$; the code takes 64.</p>)html",
           R"(for i = 1 .. T
  low = larger(1, i - W + 1)
  most = -infinity
  total = 0
  y = zeros(V)
  for J = ceil(low / C) .. ceil(i / C)   # the tiles that the window touches
    first = larger((J - 1) * C + 1, low)
    last = smaller(J * C, i)
    for j = first .. last
      x[i, j] = scale * dot(q[i], k[j])
    next = larger(most, largest(j = first .. last: x[i, j]))
    shrink = exp(most - next)
    total = shrink * total + sum(j = first .. last: exp(x[i, j] - next))
    y = shrink * y + sum(j = first .. last: exp(x[i, j] - next) * v[j])
    most = next
  o[i] = y / total
  lse[i] = most + log(total)
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>The three facts of softmax attention hold unchanged: a value gets $p[i, j] * dout[i]$; a
score gets its weight times (what its value brings less the mean, $delta[i]$); query and key get
each other. Nothing in them asks which keys a query sees. Only the borders of the sums differ.
Seen from a query they run over its window. Seen from a key they run over the queries that see
it: token $j$ is seen by the
tokens $j$ to $j + W - 1$, as far as the text goes.</p>)html",
          R"(for i = 1 .. T
  delta[i] = dot(dout[i], o[i])
  for j = low[i] .. i
    dx[i, j] = p[i, j] * (dot(dout[i], v[j]) - delta[i])
  dq[i] = scale * sum(j = low[i] .. i: dx[i, j] * k[j])
for j = 1 .. T
  end[j] = smaller(T, j + W - 1)   # the last query that sees key $j$
  dk[j] = scale * sum(i = j .. end[j]: dx[i, j] * q[i])
  dv[j] = sum(i = j .. end[j]: p[i, j] * dout[i])
)"};
}

std::vector<Experiment> experiments() {
  return {{"How far do layers reach?",
           R"html(
<p>Token 40 asks, through one to four layers, how much it gets of each token before it. Every
layer takes the plain mean of its window, so all weights are $1 / W$. One layer sees a sharp
edge. Two layers see twice as far, and little of what is far: a fact at the edge comes in by
one way only, one near by comes in by many. A trained model can do better than a plain mean,
because it may choose what to hand on. Further than the edge it cannot see.</p>)html",
           {{"$W$", "W", 1, 12, 1, 6}},
           R"(for j = 1 .. 40
  get1[j] = above(j, 40 - W) / W
  reach[1, j] = get1[j]
for layer = 2 .. 4   # what a layer sees of token $j$, it sees by way of the tokens behind $j$
  for j = 1 .. 40
    reach[layer, j] = sum(m = j .. smaller(40, j + W - 1): reach[layer - 1, m]) / W
for j = 1 .. 40
  get2[j] = reach[2, j]
  get4[j] = reach[4, j]
)",
           "token",
           "part of the result",
           {{"one layer", "get1"}, {"two layers", "get2"}, {"four layers", "get4"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let $W$ be 3. How many keys does token 5 not see any more, of the tokens before it?",
       {{"W", 0, {3}}},
       "answer = low[5] - 1",
       {{"answer = low[5]", "token low is the first one that it does see"},
        {"answer = low[5] - 2", "the window counts the token itself: it sees tokens 3, 4 and 5"}},
       "token 5 sees W tokens, itself included; count those that lie before them"},
      {"Let $W$ be 2 and all keys be (1, 1). What is the weight $p[4, 4]$?",
       {{"W", 0, {2}}, {"k", 0, {1, 1}}},
       "answer = p[4, 4]",
       {{"answer = 1 / 4", "this is without a window; it sees two keys"},
        {"answer = 1", "a window of 2 holds the token and one before it"},
        {"answer = 1 / 3", "the window counts the token itself"}},
       "all scores of token 4 are equal; over how many keys are they spread?"},
      {"Let $W$ be 2. What is the last token whose query gives a gradient to $k[3]$?",
       {{"W", 0, {2}}},
       "answer = end[3]",
       {{"answer = T", "this is without a window; later queries no longer see key 3"},
        {"answer = end[3] + 1", "the window counts the token itself"},
        {"answer = 3", "the next token sees key 3 too"}},
       "key 3 is seen by tokens 3 to 3 + W - 1"},
      {"A text has 100 tokens and the window is 10. How many pairs of a query and a key are there?",
       {},
       "answer = 10 * 100 - 10 * 9 / 2",
       {{"answer = 100 * 10", "the first nine tokens have fewer than ten keys before them"},
        {"answer = 100 * 101 / 2", "this is without a window"},
        {"answer = 9 * 100 - 9 * 8 / 2", "the window counts the token itself"}},
       "the first tokens see 1, 2, .. keys, and all from token 10 on see 10"}};
}

Lesson make() {
  Lesson l;
  l.name = "window";
  l.operation = "attention";
  l.title = "Attention within a window";
  l.summary = "Every token asks the last W tokens alone, so that each costs the same.";
  l.first = {"attention"};
  l.problem = kProblem;
  const char* const header = "kernels/attention/attention.h";
  const char* const reference = "kernels/attention/reference.h";
  l.names = {{"W", "window", header, "keys that a token sees, itself included"},
             {"q[i]", "q", header, "queries, [B, T, H, K]"},
             {"k[j]", "k", header, "keys, [B, S, Hk, K]"},
             {"v[j]", "v", header, "values, [B, S, Hk, V]"},
             {"x[i, j]", "score", reference, "how well key j fits query i"},
             {"lse[i]", "lse", header, "log of the sum of the exponentials, [B, H, T]"},
             {"p[i, j]", "p", reference, "weight of value j for query i"},
             {"o[i]", "o", header, "the result, [B, T, H, V]"},
             {"slot[i]", "position", header,
              "where generation stands: row position % S is its "
              "place in the ring"},
             {"delta[i]", "delta", reference, "what softmax takes off a gradient"}};
  l.example = {{"q", {{1, 0}, {0.5, 1}, {-1, 1}, {2, 0.5}, {0, 1}, {1, -1}}},
               {"k", {{1, 0.5}, {0, 1}, {-1, 0.5}, {1.5, -0.5}, {0.5, 0.5}, {1, -1}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}, {1, 1}, {-2, 1}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}, {0.5, 0}}}};
  l.settings = {{"scale", "0.7"}, {"window", "3"}};
  l.symbols = {{"scale", "scale"}, {"window", "W"}};
  l.constants = {{"C", 2}};
  l.sliders = {
      {.label = "$W$: how many tokens are seen", .name = "W", .low = 1, .high = 5, .step = 1},
      {.label = "first entry of key 4", .name = "k", .token = 4, .entry = 1, .low = -2, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>The kernel is that of softmax attention. A block of threads owns a tile of queries and
walks over tiles of keys; the window only says where the walk begins. Tiles outside are not
loaded. The tile with the diagonal and the one at the far edge of the window are cut by a
mask; those between need none.</p>
<p>Compare the operations a byte below with those of the lesson on attention: they no longer
grow with the length, but with the window. Products stay the limit while the window is long,
as here.</p>)html";
  l.shapes = "window";
  l.cost = R"html(
<p>The first $W$ tokens see 1, 2, … $W$ keys, and every token behind them sees $W$. So there
are $W * T - W * (W - 1) / 2$ pairs, and each costs the same as in full attention. For $T$
much longer than $W$, twice the length is twice the work. The cache of a program that writes
text is $W * (K + V)$ numbers for each head, however long the text grows.</p>)html";
  l.forward_flops = "H * 2 * (W * T - W * (W - 1) / 2) * (K + V)";
  l.backward_flops = "H * 2 * (W * T - W * (W - 1) / 2) * (3 * K + 2 * V)";
  l.bench_set = {"window=64"};
  l.recipe = small_recipe("attention", "heads = 2\nwindow = 6");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"window", "0"}}, "your queries see all keys before them; the window is 3"},
      {{{"window", "4"}}, "your window holds one key too many: it counts the token itself"},
      {{{"window", "2"}}, "your window lacks a key: it holds the token and the two before it"},
      {{{"causal", "false"}}, "a query of yours sees the keys behind it; the form is causal"}};
  return l;
}

const RegisteredLesson registered(12, make);

}  // namespace
}  // namespace weft::train
