// The lesson on gates that forget: retention, simple gates, and a gate for each key channel.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Linear attention adds every token to its state and never takes anything away. After a
long text the state is full: old, useless values drown the new ones. A memory of fixed size
must <b>forget</b>.</p>
<p>The simplest way is a <b>decay</b>: before a token is written, the whole state is
multiplied by a number between 0 and 1. Three kinds are in use:</p>
<ul>
<li>a fixed number for each head (<b>retention</b>): the head sees a fading past, always at
the same pace;</li>
<li>a number that the model makes from the token (simple gates, and Mamba-2): a full stop
can close a sentence;</li>
<li>a number for each token <b>and each entry of the key</b> (gated linear attention, the
subject of this page): one row of the state may keep a name for a thousand tokens, while the
row below it forgets the last word at once.</li>
</ul>
<p>The first two are this page's equations with equal entries in $g[t]$. All of them store
the <b>logarithm</b> $g[t]$ of the decay, at most 0. The decay over several tokens is a
product of numbers, and with logarithms it is $exp$ of a sum.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: every pair, weakened by the gates between them",
           R"html(
<p>What token $j$ wrote has passed the gates of tokens $j + 1$ to $i$ when token $i$ reads
it, and not its own gate. $G[i]$ is the sum of all gates up to $i$, so the gates between are
$G[i] - G[j]$. The sign ⊙ multiplies entry by entry.</p>)html",
           R"(G[0] = zeros(K)
for t = 1 .. T
  G[t] = G[t-1] + g[t]   # sums of the logarithms
for i = 1 .. T
  for j = 1 .. i
    p[i, j] = scale * dot(each(q[i], k[j]), exp(G[i] - G[j]))   # each key entry has its own decay
  o[i] = sum(j = 1 .. i: p[i, j] * v[j])
)"},
          {"Recurrent: fade, write, read",
           R"html(
<p>Row $d$ of the state belongs to entry $d$ of the keys, and fades by entry $d$ of
$exp(g[t])$. The work for a token is the same everywhere in the text.</p>)html",
           R"(S[0] = zeros(K, V)
for t = 1 .. T
  keep[t] = exp(g[t])   # which part of each row stays
  S[t] = each(keep[t], S[t-1]) + outer(k[t], v[t])   # fade, then write
  o[t] = scale * read(S[t], q[t])   # a token reads itself too
)"},
          {"Chunkwise: decay inside, decay between",
           R"html(
<p>Inside a chunk, pairs as in the naive form; what came before is read from the state,
faded up to the token. One danger hides here. A product of matrices needs a factor for the
query and one for the key, and the split $exp(a[i]) * exp(-a[j])$ has a factor that grows
without bound: with strong gates it overflows after a few tokens. The code therefore goes in
small chunks of 16 tokens and multiplies only by numbers that are at most one. Here $C =
2$.</p>)html",
           R"(S = zeros(K, V)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    a[i] = sum(m = first .. i: g[m])   # gates since the chunk began
    for j = first .. i
      p[i, j] = scale * dot(each(q[i], k[j]), exp(a[i] - a[j]))
    o[i] = sum(j = first .. i: p[i, j] * v[j]) + scale * read(S, each(exp(a[i]), q[i]))
  S = each(exp(a[last]), S) + sum(j = first .. last: outer(each(exp(a[last] - a[j]), k[j]), v[j]))
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Backwards through the text, with $dS$ for the gradient of the state after token $t$. The
state is a sum, so most lines are short:</p>
<ul>
<li>the read $o[t] = scale * read(S[t], q[t])$ gives $dq[t]$, and adds $scale * outer(q[t],
dout[t])$ to $dS$;</li>
<li>the write $outer(k[t], v[t])$ gives $dk[t]$ and $dv[t]$;</li>
<li>the gate multiplied row $d$ of the older state by $keep$. So its gradient is the sum,
over the row, of $dS$ times the older state, times $keep$ once more, because $g$ is a
logarithm: the derivative of $exp(g)$ is $exp(g)$;</li>
<li>on its way back $dS$ fades by the same gate.</li>
</ul>
<p>The first gate has the gradient 0: before the first token there is nothing to forget.</p>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  keep[t] = exp(g[t])
  S[t] = each(keep[t], S[t-1]) + outer(k[t], v[t])
dS = zeros(K, V)
for t = T down 1
  dq[t] = scale * times(S[t], dout[t])
  dS = dS + scale * outer(q[t], dout[t])
  dk[t] = times(dS, v[t])
  dv[t] = read(dS, k[t])
  dg[t] = each(keep[t], rows(dS, S[t-1]))   # row by row: the sum of the products
  dS = each(keep[t], dS)
)"};
}

std::vector<Experiment> experiments() {
  return {{"How far back does it see?",
           R"html(
<p>The curve shows which part of each of twenty tokens is left after token 20. First move
“kept at every token”: 0.9 sounds like much, but after 20 tokens little is left. That is all
that a fixed decay can do. Then let one token forget: everything before it is cut off, and
everything after it stays. A model that makes its gates from the text can do this at the end
of a sentence.</p>)html",
           {{"kept at every token", "usual", 0.5, 1, 0.01, 0.9},
            {"the token that forgets", "where", 1, 20, 1, 10},
            {"kept there", "there", 0.01, 1, 0.01, 1}},
           R"(G[0] = 0
for t = 1 .. 20
  hit = larger(0, 1 - (t - where) * (t - where))   # 1 at that token, else 0
  G[t] = G[t-1] + hit * log(smaller(there, usual)) + (1 - hit) * log(usual)
for j = 1 .. 20
  left[j] = exp(G[20] - G[j])
)",
           "token",
           "part that is left",
           {{"left of a token's value", "left"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"A row of the state shall lose half of what it holds in 10 tokens. Which $g$ must every "
       "token "
       "have?",
       {},
       "answer = log(0.5) / 10",
       {{"answer = -log(0.5) / 10",
         "a gate is the logarithm of a number below one: it is negative"},
        {"answer = -0.5 / 10", "the decays multiply, so their logarithms add up to log 0.5"},
        {"answer = exp(log(0.5) / 10)", "this is the part that is kept; g is its logarithm"}},
       "ten equal numbers must add up to the natural logarithm of one half"},
      {"Let $g[3]$ be (-1, 0). What is $p[4, 1]$?",
       {{"g", 3, {-1, 0}}},
       "answer = p[4, 1]",
       {{"answer = scale * dot(q[4], k[1])", "you left out the gates between token 1 and token 4"},
        {"answer = scale * dot(each(q[4], k[1]), exp(G[4]))",
         "a token does not pass its own gate: leave out g_1"},
        {"answer = scale * dot(each(q[4], k[1]), exp(G[3] - G[1]))",
         "token 4 fades the state before it reads: its gate counts"}},
       "add g_2, g_3 and g_4 entry by entry, take exp, multiply with query 4 and key 1, add up"},
      {"Let value 1 be (2, 0), value 2 be (1, 1), and $g[2]$ be (-0.5, -2). Which number stands in "
       "row 1, column 1 of $S[2]$?",
       {{"v", 1, {2, 0}}, {"v", 2, {1, 1}}, {"g", 2, {-0.5, -2}}},
       "answer = exp(at(g[2], 1)) * at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
       {{"answer = exp(at(g[2], 1)) * (at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1))",
         "fade first, then write: token 2 itself does not fade"},
        {"answer = at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
         "nothing has faded here"},
        {"answer = exp(at(g[2], 2)) * at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
         "row 1 fades by entry 1 of the gate"}},
       "what token 1 wrote there, times exp(-0.5), and what token 2 adds"},
      {"Let $dout$ be (1, 0) at token 4 and zero elsewhere. What is the first entry of $dv[1]$?",
       {{"dout", 0, {0, 0}}, {"dout", 4, {1, 0}}},
       "answer = at(dv[1], 1)",
       {{"answer = scale * dot(q[4], k[1])", "value 1 has faded before token 4 reads it"},
        {"answer = p[1, 1]", "token 1 reads itself, but its dout is zero"}},
       "value 1 enters the result of token 4 with one weight; which?"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "gated_linear";
  l.title = "Gates: a state that forgets";
  l.summary = "Before it writes, a token lets parts of the state fade, each at its own pace.";
  l.first = {"attention", "linear", "retention"};
  l.problem = kProblem;
  const char* const header = "kernels/gated_linear/gated_linear.h";
  l.names = {{"q[t]", "q", header, "queries, [B, T, Hk, K]"},
             {"k[t]", "k", header, "keys, [B, T, Hk, K]"},
             {"v[t]", "v", header, "values, [B, T, H, V]"},
             {"g[t]", "g", header, "logarithms of the decays, [B, T, H, K], at most 0"},
             {"S[t]", "final_state", header, "the state; after the last token an output"},
             {"C", "C = 16", header, "tokens of a small chunk"},
             {"a[i]", "up_i", "kernels/gated_linear/README.md", "there it is exp of the sum"}};
  l.example = {{"q", {{1, 0.5}, {0.5, 1}, {-1, 1}, {2, 0.5}}},
               {"k", {{0.5, 1}, {1.5, 0.5}, {1, -1}, {1, 2}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}}},
               {"g", {{-0.5, -0.1}, {-0.2, -1}, {-2, -0.1}, {-0.1, -0.5}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}}}};
  l.settings = {{"scale", "1"}, {"return_state", "false"}};
  l.constants = {{"C", 2}};
  l.sliders = {
      {.label = "first entry of $g[3]$", .name = "g", .token = 3, .entry = 1, .low = -4, .high = 0},
      {.label = "second entry of $g[3]$",
       .name = "g",
       .token = 3,
       .entry = 2,
       .low = -4,
       .high = 0}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>A first kernel takes all tokens at once. It makes the faded queries and keys, and the
pairs inside each small chunk of 16 tokens. Tensor cores do this by halving: tokens of the
upper half meet tokens of the lower half, and the point between them is where the decay is
split, so both factors are at most one. A second kernel walks through the text with the
state in registers.</p>
<p>A gate has as many numbers as a key, and it stays in f32. The table therefore has more
bytes than that of linear attention, and memory is the limit.</p>)html";
  l.cost = R"html(
<p>As in linear attention a token pays $4 * K * V$ operations for the state, and the pairs
of its small chunk. Nothing depends on the length. The state is $K * V$ numbers for each
head.</p>)html";
  l.forward_flops = "H * T * (4 * K * V + 16 * (2 * K + V))";
  l.backward_flops = "H * T * (12 * K * V + 16 * (5 * K + 2 * V))";
  l.recipe = small_recipe("gated_linear", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(25, make);

}  // namespace
}  // namespace weft::train
