// The lesson on retention: linear attention that forgets at a fixed pace.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>Linear attention keeps the sum of everything that it read. A sum never forgets: after a
long text, the last word is one small part of a large table. The simplest cure is to let the
table <b>fade</b>. Before a token is written, the whole state is multiplied by one number
$gamma$ a little below one. What was written $n$ tokens ago is then left with the part
$gamma$ to the power of $n$. This is <b>retention</b>.</p>
<p>$gamma$ is not learned and does not depend on the text. Each head has one of its own,
from fast to slow: head 0 loses one part in 32 at each token, head 1 one in 64, head 2 one in
128, and so on. So some heads hold the last sentence, and others the last page.</p>
<p>Because the pace is fixed, the age of a token alone decides what is left of it. The
weights of all pairs form a pattern that is known beforehand. That makes this the best
lesson to see that <b>one computation has three forms</b>: as attention over pairs, as a loop
with a state, and as chunks.</p>
<p>Linear attention divided by the sum of all weights. Retention does not divide; a
norm behind it brings each head's result to the same size. The page leaves that out. It
also leaves out that models turn queries and keys by an angle that grows with the position,
before they come here.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: every pair, faded by its distance",
           R"html(
<p>Everything is known beforehand but the dot products. The code stores the logarithm of $gamma$, so
that a power is $exp$ of a product.</p>)html",
           R"(gamma = exp(log_gamma)   # the part that is kept at each token
for i = 1 .. T
  for j = 1 .. i
    p[i, j] = scale * exp((i - j) * log_gamma) * dot(q[i], k[j])   # faded by $i - j$ tokens
  o[i] = sum(j = 1 .. i: p[i, j] * v[j])
)"},
          {"Recurrent: fade, write, read",
           R"html(
<p>One multiplication of the whole table for each token takes the place of all those powers.
Value $j$ is multiplied by $gamma$ at tokens $j + 1$, $j + 2$, … $i$, and that is $i - j$
times.</p>)html",
           R"(gamma = exp(log_gamma)
S[0] = zeros(K, V)
for t = 1 .. T
  S[t] = gamma * S[t-1] + outer(k[t], v[t])   # fade, then write: a token itself has not faded
  o[t] = scale * read(S[t], q[t])
)"},
          {"Chunkwise: pairs inside, a faded state between",
           R"html(
<p>Inside a chunk as in the naive form. What came before the chunk is in $S$, as it was after
the last token of the chunk before; for the first token of the chunk it has faded once, for
the second twice. At the end of the chunk the state fades by all its tokens at once. All
powers here are the same for every chunk and every text. Here $C = 2$, in the code
64.</p>)html",
           R"(gamma = exp(log_gamma)
S = zeros(K, V)
for c = 1 .. ceil(T / C)
  first = (c - 1) * C + 1
  last = smaller(c * C, T)
  for i = first .. last
    age = i - first + 1   # tokens since the chunk before
    inside = sum(j = first .. i: (exp((i - j) * log_gamma) * dot(q[i], k[j])) * v[j])
    o[i] = scale * (inside + exp(age * log_gamma) * read(S, q[i]))
  new = sum(j = first .. last: exp((last - j) * log_gamma) * outer(k[j], v[j]))
  S = exp((last - first + 1) * log_gamma) * S + new
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Backwards through the text. $dS$ says how the loss changes with the state after token
$t$.</p>
<ul>
<li>The read gives $dq[t]$, and adds $scale * outer(q[t], dout[t])$ to $dS$.</li>
<li>The write $outer(k[t], v[t])$ gives $dk[t]$ and $dv[t]$.</li>
<li>On its way back $dS$ fades by $gamma$, as the state did on its way forward. So the
backward pass is retention too, from right to left.</li>
</ul>
<p>Models never change $gamma$, but the derivative exists, and the code has it: each fading
$gamma * S[t-1]$ gives $inner(dS, S[t-1])$, times $gamma$ because $gamma$ is $exp$ of what
is stored.</p>)html",
          R"(S[0] = zeros(K, V)   # the states are made again
for t = 1 .. T
  S[t] = gamma * S[t-1] + outer(k[t], v[t])
dS = zeros(K, V)
dlog_gamma = 0
for t = T down 1
  dq[t] = scale * times(S[t], dout[t])
  dS = dS + scale * outer(q[t], dout[t])   # what the read wants of the state
  dk[t] = times(dS, v[t])
  dv[t] = read(dS, k[t])
  dlog_gamma = dlog_gamma + gamma * inner(dS, S[t-1])   # the sum of all products of entries
  dS = gamma * dS
)"};
}

std::vector<Experiment> experiments() {
  return {{"Heads at their own pace",
           R"html(
<p>The part that is left of a token after 10, 20, … 400 tokens, in head $h$ and in heads 0
and 3. In a model of the usual kind head $h$ keeps $1 - exp(-(5 + h) * log(2))$, which is 1
less one over 32, 64, 128 and so on. Each head more doubles the time after which half is
left. No head can keep one token and drop the next; for that the pace must depend on the
text, and that is the lesson after this one.</p>)html",
           {{"$h$", "h", 0, 7, 1, 1}},
           R"(for m = 1 .. 40
  left[10 * m] = exp(10 * m * log(1 - exp(-(5 + h) * log(2))))
  fast[10 * m] = exp(10 * m * log(1 - 1 / 32))
  slow[10 * m] = exp(10 * m * log(1 - 1 / 256))
)",
           "tokens ago",
           "part that is left",
           {{"head h", "left"}, {"head 0", "fast", true}, {"head 3", "slow", true}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let the logarithm of $gamma$ be -0.5. What is $p[4, 2]$?",
       {{"log_gamma", 0, {-0.5}}},
       "answer = p[4, 2]",
       {{"answer = scale * dot(q[4], k[2])", "value 2 has faded by the time token 4 reads it"},
        {"answer = scale * dot(q[4], k[2]) * exp(log_gamma)",
         "from token 2 to token 4 it fades twice"},
        {"answer = scale * dot(q[4], k[2]) * exp(3 * log_gamma)",
         "a token does not fade the value that it writes itself"}},
       "multiply query 4 and key 2, times scale, times exp(-0.5) for each token from 3 to 4"},
      {"Head 0 keeps 31/32 of its state at each token. After how many tokens is half left? (It "
       "is no whole number.)",
       {},
       "answer = log(0.5) / log(31 / 32)",
       {{"answer = 16", "each token takes a 32nd of what is left, not of what was there at first"},
        {"answer = 32", "after 32 tokens about 1/e is left, not half"},
        {"answer = log(0.5) / log(63 / 64)", "this is head 1; head 0 keeps 31/32"}},
       "solve (31/32) to the power of n = 1/2 with logarithms"},
      {"Let value 1 be (2, 0), value 2 be (1, 1), and the logarithm of $gamma$ be -1. Which number "
       "stands in row 1, column 1 of $S[2]$?",
       {{"v", 1, {2, 0}}, {"v", 2, {1, 1}}, {"log_gamma", 0, {-1}}},
       "answer = gamma * at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
       {{"answer = at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1)",
         "what token 1 wrote has faded once"},
        {"answer = gamma * (at(k[1], 1) * at(v[1], 1) + at(k[2], 1) * at(v[2], 1))",
         "fade first, then write: token 2 itself has not faded"},
        {"answer = gamma * at(k[1], 2) * at(v[1], 1) + at(k[2], 2) * at(v[2], 1)",
         "this is row 2: rows belong to entries of the key"}},
       "entry 1 of the key times entry 1 of the value, for both tokens; the first one fades once"},
      {"Let $dout$ be (1, 0) at token 2 and zero elsewhere. What is the gradient of the logarithm "
       "of $gamma$?",
       {{"dout", 0, {0, 0}}, {"dout", 2, {1, 0}}},
       "answer = dlog_gamma",
       {{"answer = dlog_gamma / gamma",
         "this is the gradient of gamma itself, not of its logarithm"},
        {"answer = dlog_gamma + scale * dot(q[2], k[2]) * at(v[2], 1)",
         "what token 2 wrote has not faded, so it has no part in this"}},
       "o_2 holds one term with gamma: scale gamma (q_2 . k_1) v_1; differentiate its first "
       "entry"}};
}

Lesson make() {
  Lesson l;
  l.name = "retention";
  l.operation = "linear";
  l.title = "Retention";
  l.summary = "Linear attention whose state fades at a fixed pace, one for each head.";
  l.first = {"attention", "linear"};
  l.problem = kProblem;
  const char* const header = "kernels/linear/linear.h";
  l.names = {{"q[t]", "q", header, "queries, [B, T, Hk, K]"},
             {"k[t]", "k", header, "keys, [B, T, Hk, K]"},
             {"v[t]", "v", header, "values, [B, T, H, V]"},
             {"log_gamma", "log_gamma", header, "the logarithm of what a head keeps, [H]"},
             {"gamma", "std::exp2(-5.0 - h)", "layers/retention.cpp",
              "how much head $h$ loses at each token; it keeps the rest"},
             {"S[t]", "final_state", header, "the state; after the last token an output"},
             {"o[t]", "o", header, "the result, [B, T, H, V]"}};
  l.example = {{"q", {{1, 0}, {0.5, 1}, {-1, 1}, {2, 0.5}, {1, 1}}},
               {"k", {{1, 0.5}, {0.5, 1}, {-1, 0.5}, {1.5, -0.5}, {0, 1}}},
               {"v", {{1, 0}, {-0.5, 1}, {2, -1}, {-1, 3}, {1, 1}}},
               {"log_gamma", {{-0.2}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}}}};
  l.settings = {{"scale", "0.7"}, {"return_state", "false"}};
  l.constants = {{"C", 2}};
  l.sliders = {{.label = "$log_gamma$: 0 keeps all", .name = "log_gamma", .low = -2, .high = 0}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>As in linear attention, a block of threads walks through the text of one head with the
state on the chip. The powers of $gamma$ inside a chunk are the same for all chunks, and
there is one multiplication of the state more for each chunk. Next to the products that is
nothing: fading costs no time.</p>)html";
  l.shapes = "retention";
  l.cost = R"html(
<p>As linear attention: $4 * K * V$ operations for each token to write and to read the state,
and the pairs inside a chunk of 64 tokens. Nothing depends on the length. The times below are
those of the operation with a decay for every token, which it reads from memory; a fixed
decay is at least as fast.</p>)html";
  l.forward_flops = "H * T * (4 * K * V + 64 * (K + V))";
  l.backward_flops = "H * T * (8 * K * V + 64 * (3 * K + 2 * V))";
  l.recipe = small_recipe("retention", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"scale", "1"}}, "your results lack the factor scale; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(22, make);

}  // namespace
}  // namespace weft::train
