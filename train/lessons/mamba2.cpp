// The lesson on Mamba-2: a scan with one rate for each head, which is attention with a mask.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Mamba lets each number of its memory leak at a rate of its own. That is rich, but it is
slow to train: no two numbers share a factor, so nothing can be written as a product of
matrices, and the processor's fastest part, which multiplies matrices, stands still.</p>
<p>Mamba-2 gives up a little to win this back: all numbers of a <b>head</b> leak at the same
rate. A head holds many channels (64 as a rule) with $K$ numbers of memory each, and in a step
the whole table is multiplied by one number. Everything else stays as in Mamba: each token
sets the length $step$ of its step in time, what flows in, and what is read.</p>
<p>With one rate the scan turns out to be an old friend. Write</p>
<ul>
<li>$k[t]$ for what Mamba calls B, into which numbers of the memory the input flows;</li>
<li>$q[t]$ for what it calls C, what is read;</li>
<li>$v[t]$ for the input, times the length of the step;</li>
<li>$g[t]$ for the rate, which is negative, times the length of the step.</li>
</ul>
<p>Then this is retention with a decay that each token makes. Written over pairs it is
attention without a softmax, under a mask whose numbers fade from the diagonal. That the scan
and the masked attention are one and the same is called <b>duality</b>, and it is the reason
that the same text can be trained as products of matrices and written as a loop.</p>
<p>Beside this, the layer lets a part of the input past the memory, as Mamba does. The page
leaves that out.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: attention under a mask that fades",
           R"html(
<p>$L[i, j]$ is the part of what token $j$ wrote that is left when token $i$ reads: the
product of the decays of tokens $j + 1$ to $i$. It is 1 on the diagonal.</p>)html",
           R"(G[0] = 0
for t = 1 .. T
  G[t] = G[t-1] + g[t]   # sums of the logarithms
for i = 1 .. T
  for j = 1 .. i
    L[i, j] = exp(G[i] - G[j])   # the mask: one number for all entries of the keys
    p[i, j] = scale * L[i, j] * dot(q[i], k[j])
  o[i] = sum(j = 1 .. i: p[i, j] * v[j])
)"},
          {"Recurrent: leak, take in, read",
           R"html(
<p>The scan. A long step makes $g[t]$ strongly negative, so the memory is emptied; the same
length makes $v[t]$ large, so the input takes its place. A step of length nearly zero does
neither.</p>)html",
           R"(S[0] = zeros(K, V)
for t = 1 .. T
  keep[t] = exp(g[t])   # one number for the whole table
  S[t] = keep[t] * S[t-1] + outer(k[t], v[t])
  o[t] = scale * read(S[t], q[t])
)"},
          {"Chunkwise: both at once",
           R"html(
<p>Inside a chunk the masked attention, between chunks the scan. Compare with gated linear
attention: there each entry of the key had a decay of its own, which had to be multiplied in
before the sum over entries. Here the decay is one number for each pair, so it multiplies the
<b>finished</b> product $dot(q[i], k[j])$, and all these products are one product of
matrices. Here $C = 2$, in the code 64.</p>)html",
           R"(S = zeros(K, V)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    a[i] = sum(m = first .. i: g[m])   # decays since the chunk began
    for j = first .. i
      p[i, j] = exp(a[i] - a[j]) * dot(q[i], k[j])
    o[i] = scale * (sum(j = first .. i: p[i, j] * v[j]) + exp(a[i]) * read(S, q[i]))
  S = exp(a[last]) * S + sum(j = first .. last: exp(a[last] - a[j]) * outer(k[j], v[j]))
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Backwards through the text, with $dS$ for the gradient of the state after token $t$.</p>
<ul>
<li>The read gives $dq[t]$ and adds to $dS$; the write gives $dk[t]$ and $dv[t]$.</li>
<li>The decay multiplied all of $S[t-1]$ by one number, so its gradient is one number: the
sum of all products of entries of $dS$ and $S[t-1]$. It is multiplied by $keep[t]$, because
$g$ is a logarithm.</li>
<li>From $g[t]$ and $v[t]$ the layer goes on to the length of the step, which stands in
both.</li>
</ul>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  keep[t] = exp(g[t])
  S[t] = keep[t] * S[t-1] + outer(k[t], v[t])
dS = zeros(K, V)
for t = T down 1
  dq[t] = scale * times(S[t], dout[t])
  dS = dS + scale * outer(q[t], dout[t])
  dk[t] = times(dS, v[t])
  dv[t] = read(dS, k[t])
  dg[t] = keep[t] * inner(dS, S[t-1])   # the sum of all products of entries
  dS = keep[t] * dS
)"};
}

std::vector<Experiment> experiments() {
  return {{"One step length does two things",
           R"html(
<p>The curves show row 20 of the mask: which part of each of twenty tokens is left, how much
each token took in, and both multiplied, which is the weight of its input. Make the step of
token 10 long: it takes much in, and everything before it is gone. Make it nearly zero: the
token is passed over, and the memory behind it is whole. With one number the head can do
either, never both: it cannot take a token in and keep all that was there. (The delta rule
can.)</p>)html",
           {{"step of a usual token", "usual", 0.01, 1, 0.01, 0.1},
            {"step of token 10", "special", 0.01, 3, 0.01, 1},
            {"rate of the head", "rate", 0.1, 2, 0.1, 1}},
           R"(G[0] = 0
for t = 1 .. 20
  hit = larger(0, 1 - (t - 10) * (t - 10))   # 1 at token 10, else 0
  step[t] = hit * special + (1 - hit) * usual
  G[t] = G[t-1] - rate * step[t]
for j = 1 .. 20
  left[j] = exp(G[20] - G[j])
  weight[j] = left[j] * step[j]
)",
           "token",
           "part",
           {{"left", "left"}, {"taken in", "step", true}, {"weight at token 20", "weight"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"A head has the rate −2, and a token takes a step of length 0.5. What is its $g$?",
       {},
       "answer = -2 * 0.5",
       {{"answer = exp(-2 * 0.5)", "this is the part that is kept; g is its logarithm"},
        {"answer = 2 * 0.5", "a decay is the logarithm of a number below one: it is negative"},
        {"answer = -2", "this is the rate; a step lasts some time"}},
       "g is the rate times the length of the step"},
      {"Let $g[3]$ be -1. What is $p[4, 2]$?",
       {{"g", 3, {-1}}},
       "answer = p[4, 2]",
       {{"answer = scale * dot(q[4], k[2])", "you left out the mask L[4, 2]"},
        {"answer = scale * dot(q[4], k[2]) * exp(g[3])",
         "token 4 lets the memory leak before it reads: its decay counts"},
        {"answer = scale * dot(q[4], k[2]) * exp(g[2] + g[3] + g[4])",
         "token 2 does not pass its own decay"}},
       "the mask is exp(g_3 + g_4); multiply it with query 4, key 2 and scale"},
      {"Let $g[2]$ be -0.5 and value 1 be (2, 0). Which number stands in row 1, column 1 of the "
       "state $S$ that the first chunk of two tokens hands on?",
       {{"g", 2, {-0.5}}, {"v", 1, {2, 0}}},
       "answer = exp(g[2]) * at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
       {{"answer = at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
         "token 2 let leak what token 1 wrote"},
        {"answer = exp(g[1] + g[2]) * at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
         "token 1 does not pass its own decay"},
        {"answer = exp(g[2]) * (at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1))",
         "leak first, then take in: what token 2 wrote is whole"}},
       "what token 1 wrote there times exp(-0.5), and what token 2 adds"},
      {"Let $dout$ be (1, 0) at token 3 and zero elsewhere. What is $dg[2]$?",
       {{"dout", 0, {0, 0}}, {"dout", 3, {1, 0}}},
       "answer = dg[2]",
       {{"answer = dg[3]", "this is the decay of token 3, which token 2's value passes too"},
        {"answer = dg[2] / keep[2]", "this is the gradient of keep_2; g_2 is its logarithm"},
        {"answer = scale * dot(q[3], k[1]) * at(v[1], 1)",
         "the term that g_2 stands in has the factor exp(g_2 + g_3), and keeps it"}},
       "o_3 holds scale exp(g_2 + g_3) (q_3 . k_1) v_1; differentiate its first entry by g_2"}};
}

Lesson make() {
  Lesson l;
  l.name = "mamba2";
  l.operation = "linear";
  l.title = "Mamba-2: a scan that is attention";
  l.summary = "One rate for a whole head turns the scan into products of matrices.";
  l.first = {"linear", "retention", "mamba"};
  l.problem = kProblem;
  const char* const header = "kernels/linear/linear.h";
  l.names = {
      {"q[t]", "in.q = heads(xBC[2]", "layers/mamba.cpp", "C: what is read, [B, T, Hk, K]"},
      {"k[t]", "in.k = heads(xBC[1]", "layers/mamba.cpp",
       "B: into which numbers of memory the input flows, [B, T, Hk, K]"},
      {"v[t]", "in.v", "layers/mamba.cpp", "the input times the length of the step, [B, T, H, V]"},
      {"g[t]", "in.g", "layers/mamba.cpp", "rate times length of the step, [B, T, H]"},
      {"step", "dt = bounds_(decay_.step", "layers/mamba.cpp", "the length of the step, positive"},
      {"S[t]", "final_state", header, "the state; after the last token an output"},
      {"o[t]", "o", header, "the result, [B, T, H, V]"}};
  l.example = {{"q", {{1, 0}, {0.5, 1}, {-1, 1}, {2, 0.5}, {1, 1}}},
               {"k", {{1, 0.5}, {0.5, 1}, {-1, 0.5}, {1.5, -0.5}, {0, 1}}},
               {"v", {{1, 0}, {-0.5, 1}, {2, -1}, {-1, 3}, {1, 1}}},
               {"g", {{-0.5}, {-0.1}, {-0.3}, {-2}, {-0.2}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}}}};
  l.settings = {{"scale", "1"}, {"return_state", "false"}};
  l.constants = {{"C", 2}};
  l.sliders = {{.label = "$g[2]$", .name = "g", .token = 2, .low = -4, .high = 0},
               {.label = "$g[4]$", .name = "g", .token = 4, .low = -4, .high = 0}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>Three kinds of products run on tensor cores: queries with keys inside a chunk, the masked
weights with the values, and the state with queries and keys. The mask is made on the chip
from one number for each token. The state of a head stays there while a block of threads
walks through the text.</p>
<p>All heads of a group share $q$ and $k$, which saves bytes: in the shape below 64 heads
read one pair of them. Compare with the lesson on Mamba, where products could not be used at
all.</p>)html";
  l.shapes = "mamba2";
  l.cost = R"html(
<p>As linear attention: $4 * K * V$ operations for each token to write and to read the state,
and the pairs inside a chunk of 64 tokens. The mask adds one multiplication for each pair of a
chunk. Nothing depends on the length.</p>)html";
  l.forward_flops = "H * T * (4 * K * V + 64 * (K + V))";
  l.backward_flops = "H * T * (8 * K * V + 64 * (3 * K + 2 * V))";
  l.recipe = small_recipe("mamba2", "head_dim = 32\nstate = 16");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(55, make);

}  // namespace
}  // namespace weft::train
