// The lesson on the gated delta rule: correct what is wrong, and forget what is old.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>The two lessons before this one mended linear attention in two ways, and each has a
gap:</p>
<ul>
<li>the <b>delta rule</b> can replace one value under one key. But it has no way to clear
the whole memory at once, say when a new document begins: it would need to visit every
key;</li>
<li>a <b>gate</b> clears the whole memory with one number. But it cannot take away one value
and leave the others.</li>
</ul>
<p>The gated delta rule does both, in this order: first the whole state fades by
$exp(g[t])$, then the token compares what is left with its value, and corrects it along its
key. It is used in large models (Gated DeltaNet, Qwen3-Next).</p>
<p>The order matters. The token reads the state <b>after</b> it has faded. If the gate is
closed, the state is empty, the error is the whole value, and with $beta[t] = 1$ the value
is stored as it is.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: what each token writes, weakened by the gates between",
           R"html(
<p>As in the delta rule, with $w[i]$ for what token $i$ writes along its key. What token $j$
wrote has passed the gates of the tokens $j + 1$ to $i$.</p>)html",
           R"(G[0] = 0
for t = 1 .. T
  G[t] = G[t-1] + g[t]   # sums of the logarithms
for i = 1 .. T
  held[i] = sum(j = 1 .. i - 1: exp(G[i] - G[j]) * dot(k[i], k[j]) * w[j])   # what memory returns
  w[i] = beta[i] * (v[i] - held[i])   # what is written
  o[i] = scale * sum(j = 1 .. i: exp(G[i] - G[j]) * dot(q[i], k[j]) * w[j])
)"},
          {"Recurrent: fade, compare, correct, read",
           R"html(
<p>One line more than the delta rule: `faded`. In the picture of learning while reading, the
gate is <b>weight decay</b>: before each step of gradient descent the weights shrink a
little.</p>)html",
           R"(S[0] = zeros(K, V)
for t = 1 .. T
  faded = exp(g[t]) * S[t-1]   # forget
  error[t] = v[t] - read(faded, k[t])   # compare
  S[t] = faded + beta[t] * outer(k[t], error[t])   # correct
  o[t] = scale * read(S[t], q[t])
)"},
          {"Chunkwise: the triangular system with decays",
           R"html(
<p>The same steps as for the delta rule. Each dot product of two tokens carries the decay
between them. The system is $(1 + A) * w = b$, where $b[i]$ is what token $i$ would write if the
chunk had no earlier tokens. The decays are $exp$ of differences $a[i] - a[j]$, which are at
most 0, so nothing overflows. $X$ is the inverse of $1 + A$. Here $C = 3$, in the code 64 (32 for
narrow heads on a processor).</p>)html",
           R"(S = zeros(K, V)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    a[i] = sum(m = first .. i: g[m])   # gates since the chunk began
    for j = first .. i - 1
      A[i, j] = beta[i] * exp(a[i] - a[j]) * dot(k[i], k[j])
    b[i] = beta[i] * (v[i] - exp(a[i]) * read(S, k[i]))
  for i = first .. last
    X[i, i] = 1
    for j = first .. i - 1
      X[i, j] = -sum(m = j .. i - 1: A[i, m] * X[m, j])   # the inverse, row by row
  for i = first .. last
    w[i] = sum(j = first .. i: X[i, j] * b[j])
    y = sum(j = first .. i: exp(a[i] - a[j]) * dot(q[i], k[j]) * w[j])   # inside the chunk
    o[i] = scale * (exp(a[i]) * read(S, q[i]) + y)
  S = exp(a[last]) * S + sum(j = first .. last: exp(a[last] - a[j]) * outer(k[j], w[j]))
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Go through the text backwards. $dS$ says how the loss changes with the state. At each token
it passes three points, and each line uses the $dS$ of its point:</p>
<ul>
<li><b>After the correction</b>, it belongs to $S[t]$. The lines are those of the delta rule:
the read gives $dq[t]$ and adds to $dS$; what was written gets $du = read(dS, k[t])$, and from
there come $dv[t]$, $dbeta[t]$ and the two parts of $dk[t]$.</li>
<li><b>Before the correction, after fading</b>, it belongs to the faded state $F[t]$. The
question $read(F[t], k[t])$ read it too, so $dS$ loses $beta[t] * outer(k[t], du)$. The gate
multiplied every number of the older state by $exp(g[t])$. So $dg[t]$ is the sum over all
numbers of this $dS$ times $F[t]$: the derivative of $exp(g)$ is $exp(g)$ again. The sign ⟨ , ⟩
is this sum of products.</li>
<li><b>Before fading</b>, it belongs to $S[t-1]$: $dS$ is multiplied by $exp(g[t])$ and goes on
to the token before.</li>
</ul>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  F[t] = exp(g[t]) * S[t-1]   # `faded`
  error[t] = v[t] - read(F[t], k[t])
  S[t] = F[t] + beta[t] * outer(k[t], error[t])
dS = zeros(K, V)
for t = T down 1
  dq[t] = scale * times(S[t], dout[t])
  dS = dS + scale * outer(q[t], dout[t])
  du = read(dS, k[t])   # gradient of what is written
  dv[t] = beta[t] * du
  dbeta[t] = dot(du, error[t])
  dk[t] = beta[t] * (times(dS, error[t]) - times(F[t], du))
  dS = dS - beta[t] * outer(k[t], du)   # from here on of the faded state
  dg[t] = inner(dS, F[t])
  dS = exp(g[t]) * dS
)"};
}

std::vector<Experiment> experiments() {
  return {{"The line changes in the middle of the text",
           R"html(
<p>The memory learns a line, as in the lesson on the delta rule. After token 15 the line has
the opposite slope. Without a gate (kept = 1) and with a small $beta$, the old slope is in
the way for a long time. Let the memory fade at every token: it turns faster, but it never
holds the full slope. Now keep everything and let token 16 alone forget: the best of both. A
model that sees where a new part begins can do that.</p>)html",
           {{"kept at every token", "usual", 0.5, 1, 0.01, 1},
            {"kept at token 16", "there", 0.01, 1, 0.01, 1},
            {"$beta$", "beta", 0, 2, 0.05, 0.3}},
           R"(S[0] = zeros(2, 1)
for t = 1 .. 30
  x = 2 * (t * 0.6180339887 - floor(t * 0.6180339887)) - 1   # between −1 and 1
  turned = smaller(1, larger(0, t - 15))   # 0 up to token 15, then 1
  truth[t] = 1.5 - 3 * turned
  hit = larger(0, 1 - (t - 16) * (t - 16))   # 1 at token 16
  faded = (hit * smaller(there, usual) + (1 - hit) * usual) * S[t-1]
  k = vector(x, 1) / sqrt(x * x + 1)
  v = vector(truth[t] * x) / sqrt(x * x + 1)
  S[t] = faded + beta * outer(k, v - read(faded, k))
  learned[t] = at(read(S[t], vector(1, 0)), 1)
)",
           "token",
           "slope",
           {{"true slope", "truth", true}, {"slope in the state", "learned"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let $g[3]$ be -2. What is the first entry of `held` for token 3, what memory returns for "
       "its key "
       "($held[3]$)?",
       {{"g", 3, {-2}}},
       "answer = at(held[3], 1)",
       {{"answer = at(held[3], 1) / exp(-2)", "the state fades before the token reads it"},
        {"answer = at(sum(j = 1 .. 2: dot(k[3], k[j]) * w[j]), 1)", "no gate is in this number"},
        {"answer = at(v[3] - held[3], 1)",
         "this is the error; the question is what memory returns"}},
       "what tokens 1 and 2 wrote, each times its dot product with key 3 and the gates in between "
       "(g_3 "
       "included)"},
      {"A gate of logarithm g is so strong that 1 part in 1000 is left. What is g?",
       {},
       "answer = log(0.001)",
       {{"answer = -0.001", "exp(-0.001) is nearly one: almost all is kept"},
        {"answer = 0.001", "g is the logarithm of the part that is kept"},
        {"answer = -3", "this is the logarithm to base 10; g is the natural one"}},
       "solve exp(g) = 0.001"},
      {"Let $beta$ be 1 at every token and $g[4]$ be so strong that nothing is left (-100). What "
       "is the "
       "first entry of $w[4]$?",
       {{"beta", 0, {1}}, {"g", 4, {-100}}},
       "answer = at(w[4], 1)",
       {{"answer = at(v[4] - sum(j = 1 .. 3: dot(k[4], k[j]) * w[j]), 1)",
         "this is the delta rule without the gate; here the memory is empty"},
        {"answer = 0", "the memory is empty, but the token still writes"}},
       "if memory is empty, the error is the whole value"},
      {"Let $dout$ be (1, 0) at token 2 and zero elsewhere. What is $dg[2]$?",
       {{"dout", 0, {0, 0}}, {"dout", 2, {1, 0}}},
       "answer = dg[2]",
       {{"answer = scale * dot(q[2], k[1]) * exp(g[2]) * at(w[1], 1)",
         "the faded state also changes the error of token 2, which is then written"},
        {"answer = dg[2] / exp(g[2])", "g is a logarithm: its derivative has exp(g) as a factor"},
        {"answer = -dg[2]", "the sign is the other one"}},
       "o_2 holds F_2 twice: it is read by query 2, and through the error that token 2 writes"}};
}

Lesson make() {
  Lesson l;
  l.name = "gated_delta";
  l.operation = "delta";
  l.title = "The gated delta rule";
  l.summary = "Forget the whole memory a little, then correct one place of it.";
  l.first = {"gated_linear", "delta"};
  l.problem = kProblem;
  const char* const header = "kernels/delta/delta.h";
  const char* const reference = "kernels/delta/reference.h";
  l.names = {{"q[t]", "q", header, "queries, [B, T, Hk, K], of length one"},
             {"k[t]", "k", header, "keys, [B, T, Hk, K], of length one"},
             {"v[t]", "v", header, "values, [B, T, H, V]"},
             {"beta[t]", "beta", header, "which part of the error is written, 0 to 2"},
             {"g[t]", "g", header, "logarithm of the part that is kept, [B, T, H], at most 0"},
             {"w[i]", "written", reference, "what is written along the key"},
             {"exp(G[i] - G[j])", "Gamma_ij", reference, "the decay between two tokens"},
             {"faded", "decayed", reference, "the state behind the gate"},
             {"error[t]", "error", reference, "the value less what memory returns"},
             {"S[t]", "final_state", header, "the state; after the last token an output"}};
  l.example = {{"q", {{1, 0}, {0.6, 0.8}, {0, 1}, {0.8, -0.6}, {-0.6, 0.8}, {0.8, 0.6}}},
               {"k", {{1, 0}, {0.6, 0.8}, {0.8, 0.6}, {0, 1}, {-0.8, 0.6}, {0.6, 0.8}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}, {1, 1}, {-2, 1}}},
               {"beta", {{1}, {0.5}, {0.75}, {1}, {0.25}, {1.5}}},
               {"g", {{-0.5}, {-0.1}, {-0.3}, {-1}, {-0.05}, {-0.2}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}, {0.5, 0}}}};
  l.settings = {{"scale", "1"}, {"return_state", "false"}};
  l.constants = {{"C", 3}};
  l.sliders = {{.label = "$g[3]$", .name = "g", .token = 3, .low = -4, .high = 0},
               {.label = "$g[5]$", .name = "g", .token = 5, .low = -4, .high = 0},
               {.label = "$beta[3]$", .name = "beta", .token = 3, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>The kernels are those of the delta rule; the gates enter as factors of the dot products. All
chunks make their triangular system and its inverse at once. Then a block of threads walks
through the chunks of a head, with the state in registers. Sums of gates are made in f64 and
kept as differences, so that a very strong gate does not cost the gates after it their
digits.</p>
<p>The table counts the same operations for both rules. A gate is one number for each token
and head: it costs next to nothing.</p>)html";
  l.cost = R"html(
<p>As for the delta rule: a token reads the state for the error, writes it, and reads it for
the result, three times $2 * K * V$ operations, and the pairs inside a chunk come on top.
Nothing depends on the length. The state is $K * V$ numbers for each head.</p>)html";
  l.forward_flops = "H * T * (6 * K * V + 64 * (2 * K + 2 * V))";
  l.backward_flops = "H * T * (14 * K * V + 64 * (6 * K + 5 * V))";
  l.recipe = small_recipe("gated_delta", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(40, make);

}  // namespace
}  // namespace weft::train
