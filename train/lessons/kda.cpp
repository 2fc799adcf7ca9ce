// The lesson on Kimi Delta Attention: the gated delta rule with a pace for each key entry.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>The gated delta rule has one number for forgetting: the whole state of a head fades at
one pace. But a memory holds things of different age. The name of a person should stay for a
whole chapter. The word before this one is useless in ten words' time. With one pace, either
the name is lost or old words pile up.</p>
<p>Kimi Delta Attention (KDA) takes the gate of gated linear attention in place of it: a
number for each token <b>and each entry of the key</b>. Row $d$ of the state belongs to
entry $d$ of the keys, and fades at its own pace. The model can then put names under keys
whose rows stay, and fresh words under keys whose rows fade. Everything else is the gated
delta rule: fade, compare, correct, read.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: dot products with a decay inside",
           R"html(
<p>The decay between token $j$ and token $i$ is now a vector, $exp(G[i] - G[j])$. It stands
inside the <b>dot product</b> of two keys, which multiplies them entry by entry and adds up,
because each entry has a decay of its own. The sign ⊙ multiplies entry by entry.</p>)html",
           R"(G[0] = zeros(K)
for t = 1 .. T
  G[t] = G[t-1] + g[t]   # sums of the logarithms, by entry
for i = 1 .. T
  for j = 1 .. i
    decay[i, j] = exp(G[i] - G[j])   # a number for each entry
  held[i] = sum(j = 1 .. i - 1: dot(each(k[i], k[j]), decay[i, j]) * w[j])   # what memory returns
  w[i] = beta[i] * (v[i] - held[i])   # what is written
  o[i] = scale * sum(j = 1 .. i: dot(each(q[i], k[j]), decay[i, j]) * w[j])
)"},
          {"Recurrent: each row fades, then compare and correct",
           R"html(
<p>One sign differs from the gated delta rule: the state is multiplied row by row. With
equal entries in $g[t]$ both rules are the same.</p>)html",
           R"(S[0] = zeros(K, V)
for t = 1 .. T
  faded = each(exp(g[t]), S[t-1])   # forget, each row at its pace
  error[t] = v[t] - read(faded, k[t])   # compare
  S[t] = faded + beta[t] * outer(k[t], error[t])   # correct
  o[t] = scale * read(S[t], q[t])
)"},
          {"Chunkwise: the triangular system, in small chunks",
           R"html(
<p>What token $i$ writes depends on what the tokens before it in the chunk wrote. For each
token of the chunk this is one line, $w[i] + sum(j = first .. i - 1: A[i, j] * w[j]) = b[i]$,
where $b[i]$ is what the token would write if the chunk had no earlier tokens. All lines
together are the system $(1 + A) * w = b$. $X$ is the inverse of $1 + A$, so $w = X * b$.</p>
<p>Two dangers lie in the decay $exp(a[i] - a[j])$:</p>
<ol>
<li>It stands inside the dot product. So all pairs are a product of matrices only if the decay
is split into a factor for $i$ and one for $j$.</li>
<li>The plain split $exp(a[i])$ times $exp(-a[j])$ overflows: the second factor grows without
bound if gates are strong.</li>
</ol>
<p>So the program goes in small chunks of 16 tokens, and computes $exp(a[i] - a[j])$ by a point
$m$ between both tokens: as $exp(a[i] - a[m])$ times $exp(a[m] - a[j])$, which are both at most
one. This page does not split it. Here $C = 3$.</p>)html",
           R"(S = zeros(K, V)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    a[i] = sum(m = first .. i: g[m])   # gates since the chunk began
    for j = first .. i - 1
      A[i, j] = beta[i] * dot(each(k[i], k[j]), exp(a[i] - a[j]))
    b[i] = beta[i] * (v[i] - read(S, each(exp(a[i]), k[i])))
  for i = first .. last
    X[i, i] = 1
    for j = first .. i - 1
      X[i, j] = -sum(m = j .. i - 1: A[i, m] * X[m, j])   # the inverse, row by row
  for i = first .. last
    w[i] = sum(j = first .. i: X[i, j] * b[j])
    y = sum(j = first .. i: dot(each(q[i], k[j]), exp(a[i] - a[j])) * w[j])   # inside the chunk
    o[i] = scale * (read(S, each(exp(a[i]), q[i])) + y)
  S = each(exp(a[last]), S) + sum(j = first .. last: outer(each(exp(a[last] - a[j]), k[j]), w[j]))
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Go through the text backwards. $dS$ says how the loss changes with the state. At each token
it passes three points, and each line uses the $dS$ of its point:</p>
<ul>
<li><b>After the correction</b>, it belongs to $S[t]$. The read $o[t] = scale * read(S[t],
q[t])$ gives $dq[t]$, and adds $scale * outer(q[t], dout[t])$ to $dS$. The token wrote
$outer(k[t], u)$ with $u = beta[t] * error[t]$. So $u$ gets $du = read(dS, k[t])$, and from there
come $dv[t]$ and $dbeta[t]$. The key stands in the write and in the question $read(F[t],
k[t])$, so $dk[t]$ has two parts.</li>
<li><b>Before the correction, after fading</b>, it belongs to the faded state $F[t]$. The
question read $F[t]$ too, so $dS$ loses $beta[t] * outer(k[t], du)$. Entry $d$ of $g[t]$ faded
row $d$ of the older state, so its gradient is the sum over that row, and not over the whole
state, of this $dS$ times $F[t]$. (The derivative of $exp(g)$ is $exp(g)$, and $F[t]$ has this
factor already.)</li>
<li><b>Before fading</b>, it belongs to $S[t-1]$: each row is multiplied by its $exp(g)$. This
goes on to the token before.</li>
</ul>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  F[t] = each(exp(g[t]), S[t-1])   # `faded`
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
  dg[t] = rows(dS, F[t])   # row by row: the sum of the products
  dS = each(exp(g[t]), dS)
)"};
}

std::vector<Experiment> experiments() {
  return {{"A name and the last word",
           R"html(
<p>Token 1 writes a name, the number 1, under the key (1, 0). All later tokens write 1 or −1
under the key (0, 1), two of each in turn, with a small $beta$. The name should stay; the
second line should follow the dots of the input. Use the same pace for both rows, as the
gated delta rule must: where the second row forgets fast enough to follow, the name is lost.
With two paces both work.</p>)html",
           {{"row 1: kept at every token", "first", 0.5, 1, 0.01, 0.9},
            {"row 2: kept at every token", "second", 0.1, 1, 0.01, 0.9},
            {"$beta$ of later tokens", "small", 0.1, 1, 0.05, 0.4}},
           R"(S[0] = zeros(2, 1)
for t = 1 .. 20
  hit = larger(0, 1 - (t - 1) * (t - 1))   # 1 at token 1, else 0
  word[t] = 1 - 2 * floor((t - 4 * floor(t / 4)) / 2)
  k = vector(hit, 1 - hit)
  v = vector(hit + (1 - hit) * word[t])
  faded = each(vector(first, second), S[t-1])
  S[t] = faded + (hit + (1 - hit) * small) * outer(k, v - read(faded, k))
  name[t] = at(read(S[t], vector(1, 0)), 1)
  last[t] = at(read(S[t], vector(0, 1)), 1)
)",
           "token",
           "input and memory",
           {{"input", "word", true}, {"under key (1, 0)", "name"}, {"under key (0, 1)", "last"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let $g[3]$ be (0, -100). What is the first entry of $held[3]$, what memory returns for key "
       "3?",
       {{"g", 3, {0, -100}}},
       "answer = at(held[3], 1)",
       {{"answer = at(sum(j = 1 .. 2: dot(k[3], k[j]) * w[j]), 1)", "no gate is in this number"},
        {"answer = 0", "row 2 is empty, but row 1 keeps everything at token 3"},
        {"answer = at(sum(j = 1 .. 2: exp(at(G[2] - G[j], 1)) * dot(k[3], k[j]) * w[j]), 1)",
         "row 2 is gone: only entry 1 of the keys still counts"}},
       "only row 1 is left: multiply the first entries of key 3 and of keys 1 and 2, each with the "
       "decay of row 1 and with what that token wrote"},
      {"A model has 16 heads with K = 128. How many more numbers does the gate of a token have "
       "here than "
       "in the gated delta rule?",
       {},
       "answer = 16 * 128 - 16",
       {{"answer = 16 * 128", "this is the gate here; take off that of the gated delta rule"},
        {"answer = 128 - 1", "this is one head"}},
       "one number for each head there; one for each head and entry of a key here"},
      {"A row has g = -0.01 at every token. After how many tokens is half of its content left? "
       "(It is no whole number.)",
       {},
       "answer = log(0.5) / (-0.01)",
       {{"answer = 50", "decays multiply: half is left where exp(-0.01 n) = 0.5"},
        {"answer = 100", "after 100 tokens exp(-1) is left, which is less than half"}},
       "solve exp(-0.01 n) = 0.5 for n"},
      {"Let $dout$ be (0, 1) at token 3 and zero elsewhere. What is the second entry of $dg[3]$?",
       {{"dout", 0, {0, 0}}, {"dout", 3, {0, 1}}},
       "answer = at(dg[3], 2)",
       {{"answer = at(dg[3], 1) + at(dg[3], 2)",
         "this is the sum over all rows, as one gate has it"},
        {"answer = at(rows(scale * outer(q[3], dout[3]), F[3]), 2)",
         "this is dS after the correction; the gate gets dS when beta k du' has been taken off"},
        {"answer = at(dg[3], 1)", "this is entry 1: it belongs to row 1"},
        {"answer = at(dg[3], 2) / exp(at(g[3], 2))",
         "g is a logarithm: its derivative has exp(g) as a factor"}},
       "follow the gradient to token 3, and take row 2 of dS and of F_3"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "kda";
  l.title = "Kimi Delta Attention";
  l.summary = "The gated delta rule, where every row of the memory forgets at its own pace.";
  l.first = {"gated_linear", "gated_delta"};
  l.problem = kProblem;
  const char* const header = "kernels/kda/kda.h";
  const char* const reference = "kernels/kda/reference.h";
  l.names = {
      {"q[t]", "q", header,
       "queries, [B, T, Hk, K]; a model gives them length one, the operation does not"},
      {"k[t]", "k", header, "keys, [B, T, Hk, K], of length one"},
      {"v[t]", "v", header, "values, [B, T, H, V]"},
      {"beta[t]", "beta", header, "which part of the error is written, 0 to 2"},
      {"g[t]", "g", header, "logarithms of the parts that are kept, [B, T, H, K], at most 0"},
      {"w[i]", "w", reference, "what is written along the key"},
      {"decay[i, j]", "Gamma_ij", reference, "the decay between two tokens, by entry"},
      {"faded", "decayed", reference, "the state after it has faded"},
      {"error[t]", "error", reference, "the value less what memory returns"},
      {"S[t]", "final_state", header, "the state; after the last token an output"}};
  l.example = {
      {"q", {{1, 0}, {0.6, 0.8}, {0, 1}, {0.8, -0.6}, {-0.6, 0.8}, {0.8, 0.6}}},
      {"k", {{1, 0}, {0.6, 0.8}, {0.8, 0.6}, {0, 1}, {-0.8, 0.6}, {0.6, 0.8}}},
      {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}, {1, 1}, {-2, 1}}},
      {"beta", {{1}, {0.5}, {0.75}, {1}, {0.25}, {1.5}}},
      {"g", {{-0.5, -0.1}, {-0.1, -1}, {-0.3, -0.05}, {-1, -0.2}, {-0.05, -2}, {-0.2, -0.5}}},
      {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}, {0.5, 0}}}};
  l.settings = {{"scale", "1"}, {"return_state", "false"}};
  l.constants = {{"C", 3}};
  l.sliders = {
      {.label = "first entry of $g[3]$", .name = "g", .token = 3, .entry = 1, .low = -4, .high = 0},
      {.label = "second entry of $g[3]$",
       .name = "g",
       .token = 3,
       .entry = 2,
       .low = -4,
       .high = 0},
      {.label = "$beta[3]$", .name = "beta", .token = 3, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>The kernels are built as those of the delta rule: first everything inside the chunks, for
all chunks at once, then a walk from chunk to chunk with the state in registers. What is
dearer is the dot products: a decay for each entry means that the products are made in small pieces
of 16 tokens, with factors that are at most one.</p>
<p>The gate has as many numbers as a key and stays in f32, so it alone has twice the bytes
of a key. The table counts it.</p>)html";
  l.cost = R"html(
<p>As for the delta rule: a token reads the state for the error, writes it, and reads it for
the result, three times $2 * K * V$ operations, and the pairs inside a small chunk come on
top. Nothing depends on the length. The state is $K * V$ numbers for each head.</p>)html";
  l.forward_flops = "H * T * (6 * K * V + 16 * (3 * K + 2 * V))";
  l.backward_flops = "H * T * (16 * K * V + 16 * (9 * K + 7 * V))";
  l.recipe = small_recipe("kda", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(45, make);

}  // namespace
}  // namespace weft::train
