// The lesson on the delta rule: a memory that corrects what it holds.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Linear attention writes each value under its key by adding. It never takes anything away.
Say that an early sentence tells “the door is open” and a later one “the door is closed”.
Both have the same key, so the memory holds the <b>sum</b> of both values, and whoever asks
for the door gets a mixture.</p>
<p>The delta rule looks before it writes:</p>
<ul>
<li>it asks the state what it holds under the key: $read(S[t-1], k[t])$;</li>
<li>it compares this with the value that should stand there: the difference is the
<b>error</b>;</li>
<li>it writes only a part $beta[t]$ of the error under the key.</li>
</ul>
<p>Keys have length one, so a value that was just written is read back unchanged. With
$beta[t] = 1$ the old value is replaced. With $beta[t] = 0$ nothing is written. With 2 the
memory goes beyond the new value as far as the old one was away from it, which lets a state
flip its sign. The model makes $beta$ from each token, so it learns when to write.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: what each token writes, without a state",
           R"html(
<p>Let $w[i]$ be what token $i$ writes along its key. The memory that it meets is the sum of
what the tokens before it wrote, each times the dot product of its key with key $i$. If all
keys were at right angles, every $dot(k[i], k[j])$ would be zero, and this would be linear
attention with $beta[i] * v[i]$ in place of the values.</p>)html",
           R"(for i = 1 .. T
  held[i] = sum(j = 1 .. i - 1: dot(k[i], k[j]) * w[j])   # what memory returns for key $i$
  w[i] = beta[i] * (v[i] - held[i])   # what is written
  o[i] = scale * sum(j = 1 .. i: dot(q[i], k[j]) * w[j])
)"},
          {"Recurrent: read, compare, write",
           R"html(
<p>The same with a state. The step has a second reading: the loss $inner(v[t] - read(S,
k[t]), v[t] - read(S, k[t])) / 2$ says how badly the memory answers for key $t$. Its
gradient with respect to $S$ is $-outer(k[t], error[t])$. So each token takes <b>one step of
gradient descent</b> on its own error, with the learning rate $beta[t]$. The state is a
small linear model that is trained while the text is read. The experiment below shows it
learn.</p>)html",
           R"(S[0] = zeros(K, V)
for t = 1 .. T
  held[t] = read(S[t-1], k[t])   # what memory returns for key $t$
  error[t] = v[t] - held[t]   # what is missing
  S[t] = S[t-1] + beta[t] * outer(k[t], error[t])   # correct it along the key
  o[t] = scale * read(S[t], q[t])
)"},
          {"Chunkwise: a triangular system in place of a loop",
           R"html(
<p>Inside a chunk, what token $i$ writes depends on what the tokens before it wrote: a
chain. But it is a chain of <b>linear</b> equations. With $A[i, j] = beta[i] * dot(k[i],
k[j])$ for earlier tokens $j$ of the chunk, the chain says $(1 + A) * w = b$, where $b[i]$ is
what token $i$ would write if the chunk had no earlier tokens. $A$ has numbers below its
diagonal only, so the inverse $X$ of $1 + A$ is found row by row. This step is known as the
UT transform. Then everything is again products of matrices.</p>
<p>Papers keep two matrices for this, named W and U (the WY form): U is $X$ times the
values, W is $X$ times the keys, each scaled by $beta$, and $w = U - W * S$. Here $C = 3$, in
the code 64 (32 for narrow heads on a processor). The code for the processor solves the
system directly and never forms $X$; the code for a GPU forms it.</p>)html",
           R"(S = zeros(K, V)   # the state before the chunk
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    for j = first .. i - 1
      A[i, j] = beta[i] * dot(k[i], k[j])   # below the diagonal
    b[i] = beta[i] * (v[i] - read(S, k[i]))   # against the state before the chunk
  for i = first .. last
    X[i, i] = 1
    for j = first .. i - 1
      X[i, j] = -sum(m = j .. i - 1: A[i, m] * X[m, j])   # the inverse, row by row
  for i = first .. last
    w[i] = sum(j = first .. i: X[i, j] * b[j])   # what is written
    o[i] = scale * (read(S, q[i]) + sum(j = first .. i: dot(q[i], k[j]) * w[j]))
  S = S + sum(j = first .. last: outer(k[j], w[j]))
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Go through the text backwards. $dS$ says how the loss changes with the state after token
$t$; at the end of the text it is zero.</p>
<ul>
<li>The token reads $o[t] = scale * read(S[t], q[t])$. So $dq[t]$ is the state applied to
$dout[t]$, and $dS$ gains $scale * outer(q[t], dout[t])$.</li>
<li>It wrote $outer(k[t], u)$ with $u = beta[t] * error[t]$. So $u$ gets $du = read(dS,
k[t])$; from there $beta$ gets $dot(du, error[t])$ and the value gets $beta[t] * du$.</li>
<li>The key stands in two places: in the table that is written, and in the question
$read(S[t-1], k[t])$ that the error came from. So $dk$ has two parts.</li>
<li>The question also reads the older state, so $dS$ loses $beta[t] * outer(k[t], du)$ on
its way back.</li>
</ul>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  error[t] = v[t] - read(S[t-1], k[t])
  S[t] = S[t-1] + beta[t] * outer(k[t], error[t])
dS = zeros(K, V)
for t = T down 1
  dq[t] = scale * times(S[t], dout[t])
  dS = dS + scale * outer(q[t], dout[t])   # what the read wants of the state
  du = read(dS, k[t])   # gradient of what is written
  dv[t] = beta[t] * du
  dbeta[t] = dot(du, error[t])
  dk[t] = beta[t] * (times(dS, error[t]) - times(S[t-1], du))   # as it writes, and as it asks
  dS = dS - beta[t] * outer(k[t], du)   # the question read the older state
)"};
}

// x lies in [-1, 1] and looks random: multiples of a number that is no fraction.
std::vector<Experiment> experiments() {
  return {{"The state learns a line",
           R"html(
<p>Each token is a point of the line y = slope · x + start. Its key is $vector(x, 1)$ made to
length one, its value is y over the same length. The state has two numbers, and they are the
memory's own slope and start. Watch them come nearer to yours, one step of gradient descent
a token. Then: a small $beta$ learns slowly; noise makes a large $beta$ jump, because it
believes the last point; a $beta$ above 2 runs away. (That is why the code asks for 0 to
2.)</p>)html",
           {{"slope", "slope", -2, 2, 0.1, 1.2},
            {"start", "start", -2, 2, 0.1, -0.5},
            {"$beta$", "beta", 0, 2.1, 0.05, 0.7},
            {"noise", "noise", 0, 2, 0.1, 0}},
           R"(S[0] = zeros(2, 1)   # slope and start, as the memory has them
for t = 1 .. 30
  x = 2 * (t * 0.6180339887 - floor(t * 0.6180339887)) - 1   # between −1 and 1
  n = noise * (t * 0.7548776662 - floor(t * 0.7548776662) - 0.5)
  k[t] = vector(x, 1) / sqrt(x * x + 1)
  v[t] = vector(slope * x + start + n) / sqrt(x * x + 1)
  error[t] = v[t] - read(S[t-1], k[t])
  S[t] = S[t-1] + beta * outer(k[t], error[t])
  learned[t] = at(read(S[t], vector(1, 0)), 1)
  offset[t] = at(read(S[t], vector(0, 1)), 1)
  missed[t] = sqrt(dot(error[t], error[t]))
)",
           "token",
           "slope, start, and error",
           {{"slope in the state", "learned"},
            {"start in the state", "offset"},
            {"error of a token before it writes", "missed"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let key 1 and key 2 both be (1, 0), value 1 be (3, 0), value 2 be (1, 2), and $beta$ be 1 "
       "at "
       "every token. What does the state return for this key after token 2: the first entry of "
       "$read(S[2], k[2])$?",
       {{"k", 1, {1, 0}}, {"k", 2, {1, 0}}, {"v", 1, {3, 0}}, {"v", 2, {1, 2}}, {"beta", 0, {1}}},
       "answer = at(sum(j = 1 .. 2: dot(k[2], k[j]) * w[j]), 1)",
       {{"answer = at(v[1], 1) + at(v[2], 1)", "linear attention adds; the delta rule replaces"},
        {"answer = at(v[1], 1)", "this stood there after token 1; token 2 has the same key"},
        {"answer = at(v[2], 1) - at(v[1], 1)",
         "this is the error that is written on top of value 1"}},
       "with beta = 1 and a key of length one, the new value takes the place of the old one"},
      {"Let $beta[3]$ be 0.25. What is the first entry of $w[3]$, which token 3 writes?",
       {{"beta", 3, {0.25}}},
       "answer = at(w[3], 1)",
       {{"answer = 0.25 * at(v[3], 1)", "you did not take off what memory returns for key 3"},
        {"answer = at(w[3], 1) / 0.25", "this is the error; a part beta of it is written"},
        {"answer = 0.25 * (at(v[3], 1) + at(sum(j = 1 .. 2: dot(k[3], k[j]) * w[j]), 1))",
         "what memory returns is taken off, not added"}},
       "w_1 and w_2 stay as they are on this page; w_3 is beta times (value less what is held)"},
      {"Let $beta$ be 1 at every token. Which number is $X[3, 1]$ of the first chunk?",
       {{"beta", 0, {1}}},
       "answer = dot(k[3], k[2]) * dot(k[2], k[1]) - dot(k[3], k[1])",
       {{"answer = -dot(k[3], k[1])",
         "this is the direct way alone; there is one over token 2 too"},
        {"answer = dot(k[3], k[1]) - dot(k[3], k[2]) * dot(k[2], k[1])",
         "the sign is the other one"},
        {"answer = dot(k[3], k[2]) * dot(k[2], k[1]) + dot(k[3], k[1])",
         "the direct way takes off, the way over token 2 gives back"}},
       "write the line for X with i = 3 and j = 1: a sum over m = 1 and m = 2"},
      {"Let $dout$ be zero at every token but the last, 6, and (1, 0) there. What is $dbeta[6]$?",
       {{"dout", 0, {0, 0}}, {"dout", 6, {1, 0}}},
       "answer = dbeta[6]",
       {{"answer = at(error[6], 1)",
         "the query reads with its dot product with key 6; you left it out"},
        {"answer = dot(q[6], k[6]) * at(v[6], 1)", "beta multiplies the error, not the value"},
        {"answer = beta[6] * dbeta[6]", "a gradient with respect to beta has no factor beta"}},
       "o_6 holds beta_6 times the error of token 6, times the dot product of query 6 and key 6"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "delta";
  l.title = "The delta rule";
  l.summary = "A memory that looks before it writes, and writes only what is missing.";
  l.first = {"attention", "linear"};
  l.problem = kProblem;
  l.names = {
      {"q[t]", "q", "kernels/delta/delta.h",
       "queries, [B, T, Hk, K]; a model gives them length one, the operation does not"},
      {"k[t]", "k", "kernels/delta/delta.h", "keys, [B, T, Hk, K], of length one"},
      {"v[t]", "v", "kernels/delta/delta.h", "values, [B, T, H, V]"},
      {"beta[t]", "beta", "kernels/delta/delta.h", "which part of the error is written, 0 to 2"},
      {"w[i]", "written", "kernels/delta/reference.h", "what is written along the key"},
      {"error[t]", "error", "kernels/delta/reference.h", "the value less what memory returns"},
      {"S[t]", "final_state", "kernels/delta/delta.h", "the state; after the last token an output"},
      {"C", "C = 64", "kernels/delta/delta.h", "tokens of a chunk, as operations are counted"},
      {"X", "X = (1 + Diag(beta) M)^-1", "kernels/delta/README.md", "the inverse, on a GPU"},
      {"dS", "dS", "kernels/delta/reference.h", "gradient of the state"},
      {"du", "du", "kernels/delta/reference.h", "gradient of what is written"}};
  l.example = {{"q", {{1, 0}, {0.6, 0.8}, {0, 1}, {0.8, -0.6}, {-0.6, 0.8}, {0.8, 0.6}}},
               {"k", {{1, 0}, {0.6, 0.8}, {0.8, 0.6}, {0, 1}, {-0.8, 0.6}, {0.6, 0.8}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}, {1, 1}, {-2, 1}}},
               {"beta", {{1}, {0.5}, {0.75}, {1}, {0.25}, {1.5}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}, {0.5, 0}}}};
  l.settings = {{"scale", "1"}, {"return_state", "false"}};
  l.constants = {{"C", 3}};
  l.sliders = {{.label = "$beta[2]$", .name = "beta", .token = 2, .high = 2},
               {.label = "$beta[3]$", .name = "beta", .token = 3, .high = 2},
               {.label = "$beta[6]$", .name = "beta", .token = 6, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>Three kinds of kernels share the work. The first takes every chunk of every head at the
same time: it makes the dot products of the keys inside the chunk, and the inverse $X$ of the small
triangular system, in blocks of 16 rows. The second walks through the chunks of a head one
after the other with the state in registers; only a few products of matrices lie on the way
from one state to the next. The third makes the gradients of all chunks at once again.</p>
<p>The walk is what limits: chunks wait for each other, so many heads and many rows are
needed to fill the chip. Compare the operations a byte in the table with those of linear
attention: there are more of them, and they depend on each other.</p>)html";
  l.cost = R"html(
<p>A token reads the state for the error, writes it, and reads it for the result: three
times $2 * K * V$ operations. The pairs inside a chunk of $C$ tokens come on top. Nothing
depends on the length, so twice the length is twice the work. The state is $K * V$ numbers
for each head.</p>)html";
  l.forward_flops = "H * T * (6 * K * V + 64 * (2 * K + 2 * V))";
  l.backward_flops = "H * T * (14 * K * V + 64 * (6 * K + 5 * V))";
  l.bench_without = {"g"};
  l.recipe = small_recipe("delta", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(30, make);

}  // namespace
}  // namespace weft::train
