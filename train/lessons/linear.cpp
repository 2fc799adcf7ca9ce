// The lesson on linear attention: feature maps, and a state in place of a cache.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Softmax attention compares every token with every token before it. A text of twice the
length takes four times the work, and a program that writes text keeps all keys and values.
Can a model carry the past in a memory of <b>fixed size</b> instead?</p>
<p>What stands in the way is the exponential in $exp(dot(q[i], k[j]))$. It ties query and
key together: for a new query everything must be compared again. Linear attention takes a
weight that comes apart. A <b>feature map</b> $f$ is applied to the query and to the key,
each by itself, and the weight is the dot product of the two results. In the simplest map
every entry $x$ becomes $x + 1$ if $x$ is positive and $exp(x)$ if not (its name is `elu1`).
All entries are then positive, so all weights are too. From here on this page writes $q$ and
$k$ for what comes out of the map.</p>
<p>Now look at the sum $sum(j = 1 .. i: dot(q[i], k[j]) * v[j])$. The query is the same in
each term, so it can be taken out: first add up the products of keys and values, then ask.
The table of these products, $sum(j = 1 .. i: outer(k[j], v[j]))$, is the <b>state</b>. It
has one number for each pair of a key's entry and a value's entry, however long the text is.
The symbol ⊤ turns a column of numbers into a row, so a column times a row is a table: the
number in row $r$, column $c$ is entry $r$ of the key times entry $c$ of the value.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: every pair, but without an exponential",
           R"html(
<p>As in softmax attention, each pair has a weight, and the result is the mean of the values
under these weights. The small number $eps$ keeps the division safe.</p>)html",
           R"(for i = 1 .. T
  for j = 1 .. i
    p[i, j] = scale * dot(q[i], k[j])   # weight, before the division
  den[i] = sum(j = 1 .. i: p[i, j]) + eps   # all weights together
  o[i] = sum(j = 1 .. i: p[i, j] * v[j]) / den[i]
)"},
          {"Recurrent: a state",
           R"html(
<p>$S[t]$ holds everything that later tokens can know of tokens $1$ to $t$; $z[t]$ is the
sum of the keys, for the division. Each token reads and writes the state once, so the work
for one token is the same at the start and after a million tokens. A program that writes
text works like this.</p>)html",
           R"(S[0] = zeros(K, V)   # the state: nothing is known yet
z[0] = zeros(K)
for t = 1 .. T
  S[t] = S[t-1] + outer(k[t], v[t])   # write: value $t$ under key $t$
  z[t] = z[t-1] + k[t]
  den[t] = scale * dot(z[t], q[t]) + eps
  o[t] = scale * read(S[t], q[t]) / den[t]   # read with the query
)"},
          {"Chunkwise: pairs inside a chunk, the state between chunks",
           R"html(
<p>The recurrent form takes one small step after the other, and a processor with thousands
of arithmetic units waits most of the time. The naive form keeps all units busy with large
products, but does too much. Training takes the middle: the text is cut into chunks of $C$
tokens. Inside a chunk all pairs are made at once; what came before the chunk is read from
the state. Here $C = 2$, in the code 64.</p>)html",
           R"(S = zeros(K, V)   # the state before the chunk
z = zeros(K)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    for j = first .. i
      p[i, j] = scale * dot(q[i], k[j])   # pairs inside the chunk
    den[i] = sum(j = first .. i: p[i, j]) + scale * dot(z, q[i]) + eps
    o[i] = (sum(j = first .. i: p[i, j] * v[j]) + scale * read(S, q[i])) / den[i]
  S = S + sum(j = first .. last: outer(k[j], v[j]))   # one product of matrices
  z = z + sum(j = first .. last: k[j])
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>$dout[i]$ says how the loss changes with the result $o[i]$. The result is a fraction, so
its gradient goes to the upper and to the lower part:</p>
<ul>
<li>the upper part gets $dn[i] = dout[i] / den[i]$;</li>
<li>the lower part gets $dd[i] = -dot(dout[i], o[i]) / den[i]$, because a larger $den[i]$
makes every entry of $o[i]$ smaller in proportion;</li>
<li>a weight $p[i, j]$ stands in both: above with the value $v[j]$, below with 1. So it gets
$dp[i, j] = dot(dn[i], v[j]) + dd[i]$;</li>
<li>a weight is a dot product: the query gets the keys, the key gets the queries. A value
gets what the upper part got, times its weight.</li>
</ul>
<p>In the code these sums are again made with a state. For $dk$ and $dv$ it runs
<b>backwards</b> through the text: $dS$ gathers what later queries want of the state.</p>)html",
          R"(for i = 1 .. T
  dn[i] = dout[i] / den[i]
  dd[i] = -dot(dout[i], o[i]) / den[i]
  for j = 1 .. i
    dp[i, j] = dot(dn[i], v[j]) + dd[i]
  dq[i] = scale * sum(j = 1 .. i: dp[i, j] * k[j])
for j = 1 .. T
  dk[j] = scale * sum(i = j .. T: dp[i, j] * q[i])   # from this token and all later ones
  dv[j] = sum(i = j .. T: p[i, j] * dn[i])
)"};
}

std::vector<Experiment> experiments() {
  return {{"What the feature map gives up",
           R"html(
<p>A query meets nine keys that lie on a line, key 9 in the direction of the query. The
curves are the weights after division: of softmax, and of the map `elu1`. Make the query
larger: softmax becomes sharper and picks one key. The weights of `elu1` stay spread out.
This is why linear attention finds a single fact in a long text less well.</p>)html",
           {{"size of the query", "size", 0, 4, 0.25, 2}},
           R"(for i = 1 .. 2
  x[i] = size * (3 - 2 * i)   # the query's two entries: size and −size
  fq[i] = larger(x[i], 0) + exp(smaller(x[i], 0))
for j = 1 .. 9
  y = (j - 5) / 2   # the key's two entries: y and −y
  e[j] = exp(2 * size * y - 4 * size)
  f[j] = fq[1] * (larger(y, 0) + exp(smaller(y, 0))) + fq[2] * (larger(-y, 0) + exp(smaller(-y, 0)))
for j = 1 .. 9
  softmax[j] = e[j] / sum(i = 1 .. 9: e[i])
  linear[j] = f[j] / sum(i = 1 .. 9: f[i])
)",
           "key",
           "weight",
           {{"softmax", "softmax"}, {"elu1", "linear"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"A head has K = 64 and V = 32. How many numbers do $S$ and $z$ hold together?",
       {},
       "answer = 64 * 32 + 64",
       {{"answer = 64 * 32", "this is S alone; z has a number for each entry of a key"},
        {"answer = 64 * 32 + 32", "z is a sum of keys, not of values"},
        {"answer = 64 + 32", "S is a table: one number for each pair of entries"}},
       "S has a row for each entry of a key and a column for each entry of a value"},
      {"Let key 2 be (1, 0.5). Which number stands in row 1, column 2 of $S[3]$?",
       {{"k", 2, {1, 0.5}}},
       "answer = sum(j = 1 .. 3: at(k[j], 1) * at(v[j], 2))",
       {{"answer = sum(j = 1 .. 3: at(k[j], 2) * at(v[j], 1))",
         "rows belong to keys and columns to values; this is row 2, column 1"},
        {"answer = at(k[3], 1) * at(v[3], 2)",
         "this is what token 3 adds; the state keeps the rest"},
        {"answer = sum(j = 1 .. 2: at(k[j], 1) * at(v[j], 2))", "this is S after two tokens"}},
       "add up, over tokens 1 to 3, entry 1 of the key times entry 2 of the value"},
      {"Let query 3 be (1, 1). Which share of all weights has value 1 for it? (eps is too small to "
       "matter.)",
       {{"q", 3, {1, 1}}},
       "answer = p[3, 1] / den[3]",
       {{"answer = p[3, 1]", "this is the weight before the division"},
        {"answer = exp(p[3, 1]) / sum(j = 1 .. 3: exp(p[3, j]))",
         "this is softmax; linear attention has no exponential"},
        {"answer = p[3, 1] / sum(j = 1 .. 4: p[3, 1] + 0 * j)",
         "token 3 sees three keys, and their weights differ"}},
       "divide the dot product with key 1 by the sum of the dot products with keys 1, 2 and 3"},
      {"Softmax attention takes $H * T * (T + 1) * (K + V)$ operations forward; section 6 has the "
       "formula of this page. With $K = V = 64$, at which length $T$ do both take as many?",
       {},
       "answer = (4 * 64 * 64 + 64 * (64 + 64)) / (64 + 64) - 1",
       {{"answer = 4 * 64 * 64 / (64 + 64) - 1", "you left out the pairs inside a chunk"},
        {"answer = (4 * 64 * 64 + 64 * (64 + 64)) / (2 * (64 + 64)) - 1",
         "T (T + 1) counts two operations for each of the T (T + 1) / 2 pairs already"},
        {"answer = (4 * 64 * 64 + 64 * (64 + 64)) / (64 + 64)",
         "attention has T (T + 1) / 2 pairs, not T^2 / 2: a token sees itself"}},
       "set both formulas equal, divide by H and by T, and solve for T"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "linear";
  l.title = "Linear attention";
  l.summary = "The past in a table of fixed size: write a value under a key, read it with a query.";
  l.first = {"attention"};
  l.problem = kProblem;
  l.names = {
      {"q[i]", "q", "kernels/linear/linear.h", "queries after the feature map, [B, T, Hk, K]"},
      {"k[j]", "k", "kernels/linear/linear.h", "keys after the feature map, [B, T, Hk, K]"},
      {"v[j]", "v", "kernels/linear/linear.h", "values, [B, T, H, V]"},
      {"p[i, j]", "score", "kernels/linear/reference.h", "weight before the division"},
      {"den[i]", "den", "kernels/linear/reference.h", "the sum of the weights, and eps"},
      {"eps", "eps", "kernels/linear/linear.h", "what keeps the division safe"},
      {"S[t]", "final_state", "kernels/linear/linear.h",
       "the state; after the last token an output"},
      {"z[t]", "final_z", "kernels/linear/linear.h", "the sum of the keys"},
      {"C", "C = 64", "kernels/linear/linear.h", "tokens of a chunk"},
      {"dd[i]", "dden", "kernels/linear/reference.h", "gradient of the lower part"},
      {"f", "elu1", "layers/feature_map.cpp", "a feature map"}};
  l.example = {{"q", {{1, 0.5}, {0.25, 1.5}, {2, 1}, {0.5, 0.25}}},
               {"k", {{0.5, 1}, {1.5, 0.25}, {0.25, 0.5}, {1, 2}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}}}};
  l.settings = {{"scale", "1"}, {"normalize", "true"}, {"eps", "0.001"}, {"return_state", "false"}};
  l.constants = {{"C", 2}, {"eps", 0.001}};
  l.sliders = {{.label = "first entry of key 2", .name = "k", .token = 2, .entry = 1, .high = 4},
               {.label = "first entry of query 4", .name = "q", .token = 4, .entry = 1, .high = 4}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>The state never leaves the chip. A block of threads owns 64 columns of the values of one
head and walks through its text: it loads a chunk of queries, keys and values, makes the
products inside the chunk and with the state on tensor cores, writes the results, and adds
to the state, which stays in registers.</p>
<p>So each input is read once and each result is written once. The table shows how many
operations there are for each byte. It does not grow with the length, and it is small:
memory is the limit, and the best that a kernel can do is to copy at full speed.</p>)html";
  l.cost = R"html(
<p>Each token pays for the state, $4 * K * V$ operations to write and to read it, and for
the pairs inside its chunk. Nothing depends on the length, so twice the length is twice the
work. The state is $K * V$ numbers for each head; a cache of keys and values would be $T *
(K + V)$.</p>)html";
  l.forward_flops = "H * T * (4 * K * V + 64 * (K + V))";
  l.backward_flops = "H * T * (8 * K * V + 64 * (3 * K + 2 * V))";
  l.bench_without = {"g"};
  l.recipe = small_recipe("linear_attention", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"normalize", "false"}}, "you do not divide by the sum of the weights"},
      {{{"eps", "0"}}, "you left out eps, which is added to the sum of the weights"},
      {{{"scale", "1"}}, "your weights lack the factor scale, and eps is added to scaled ones"}};
  return l;
}

const RegisteredLesson registered(20, make);

}  // namespace
}  // namespace weft::train
