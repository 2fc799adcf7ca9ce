// The lesson on the selective scan of Mamba.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>The mechanisms before this one grew out of attention. Mamba comes from another side: from
systems that follow a signal through time, such as a tank that water flows into and out of.
Each of many <b>channels</b> carries one number $x[t]$ a token, and keeps $K$ numbers of
memory, the state $h[t]$.</p>
<p>Two things happen in a step. The memory <b>leaks</b>: each of its numbers is multiplied
by a factor below one. And the input <b>flows in</b>. How much of both happens depends on
the length of the step in time:</p>
<ul>
<li>a long step leaks much and takes much in: the memory is replaced;</li>
<li>a step of length nearly zero does neither: the token is passed over, and the memory
stays.</li>
</ul>
<p>In older systems the step was always the same. Here each token sets its own, $step[t]$,
in each channel. It also sets $B[t]$, which says into which numbers of the memory the input
flows, and $C[t]$, which says what is read. This is the <b>selection</b>: the model chooses,
token by token, what is worth keeping.</p>
<p>This page follows one channel with two numbers of memory, $K = 2$.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: everything that was written, faded",
           R"html(
<p>A model's layers give any number as $dt[t]$; $softplus$ makes a length of it, which cannot be
negative. A leak at rate $A$ over the time $s$ leaves the part $exp(s * A)$; $A$ is negative, and a
number of memory has a rate of its own. Time adds up: between token $j$ and token $i$ lies
$P[i] - P[j]$. The sum $y$ has two numbers here, one for each number of memory.</p>)html",
           R"(A = -exp(A_log)   # the rates of the leaks, always negative
P[0] = 0
for t = 1 .. T
  step[t] = softplus(dt[t])   # a length of time, always positive
  P[t] = P[t-1] + step[t]   # the clock
for i = 1 .. T
  y = sum(j = 1 .. i: (step[j] * x[j]) * each(exp((P[i] - P[j]) * A), B[j]))   # the memory
  o[i] = dot(C[i], y) + D * x[i]   # $D$ lets the input through beside the memory
)"},
          {"Recurrent: leak, take in, read",
           R"html(
<p>The same as a loop. The memory of a channel is $K$ numbers, whatever the length of the
text.</p>)html",
           R"(A = -exp(A_log)
h[0] = zeros(K)
for t = 1 .. T
  step[t] = softplus(dt[t])
  keep[t] = exp(step[t] * A)   # the part of each number that stays
  h[t] = each(keep[t], h[t-1]) + (step[t] * x[t]) * B[t]   # leak, then take in
  o[t] = dot(C[t], h[t]) + D * x[t]
)"},
          {"Chunkwise: segments with a state between them",
           R"html(
<p>Each channel and each number of memory fades at a pace of its own, so pairs of tokens
cannot be written as one product of matrices, as in the other mechanisms. The code walks
through time, and fills the processor with channels instead: thousands of them go side by
side. It cuts the text into segments (here of $L = 2$ tokens, in the code of 64) and keeps
only the states between them for the backward pass.</p>)html",
           R"(A = -exp(A_log)
first_state[1] = zeros(K)   # what is kept: a state for each segment
for c = 1 .. ceil(T / L)
  y = first_state[c]
  for t = (c - 1) * L + 1 .. smaller(c * L, T)
    step[t] = softplus(dt[t])
    y = each(exp(step[t] * A), y) + (step[t] * x[t]) * B[t]
    o[t] = dot(C[t], y) + D * x[t]
  first_state[c + 1] = y
)"}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>Backwards through the text. $dh$ says how the loss changes with the memory after token
$t$.</p>
<ul>
<li>The read gives $dC[t]$, and adds $dout[t] * C[t]$ to $dh$.</li>
<li>What flowed in was $step[t] * x[t] * B[t]$: a product of three, so each gets the other
two.</li>
<li>The leak was $exp(step[t] * A)$ times the older memory. With $w$ for $dh$ times the leak
times the older memory, $step[t]$ gets $dot(w, A)$ and $A$ gets $step[t] * w$.</li>
<li>The step came from softplus, whose derivative is the sigmoid. $A$ came from $A_log$ by
$-exp(A_log)$, whose derivative is $A$ itself.</li>
</ul>)html",
          R"(A = -exp(A_log)
h[0] = zeros(K)
for t = 1 .. T
  step[t] = softplus(dt[t])
  keep[t] = exp(step[t] * A)
  h[t] = each(keep[t], h[t-1]) + (step[t] * x[t]) * B[t]
dh = zeros(K)
dA = zeros(K)
for t = T down 1
  dC[t] = dout[t] * h[t]
  dh = dh + dout[t] * C[t]
  dB[t] = (step[t] * x[t]) * dh
  dx[t] = step[t] * dot(dh, B[t]) + D * dout[t]
  w = each(each(dh, keep[t]), h[t-1])
  ddt[t] = (dot(w, A) + x[t] * dot(dh, B[t])) * sigmoid(dt[t])
  dA = dA + step[t] * w
  dh = each(keep[t], dh)
dA_log = each(A, dA)
dD = sum(t = 1 .. T: dout[t] * x[t])
)"};
}

std::vector<Experiment> experiments() {
  return {{"Select one token",
           R"html(
<p>Twenty tokens with the numbers 1, −1, 1, −1, … go by, but token 8 carries a 3 that the
memory should hold. A usual token takes a step of the first length, token 8 of the second.
Let all steps be equal first: the 3 is washed away. Then make the usual step nearly zero and
step 8 long. The two lines are memories that leak fast and slowly.</p>)html",
           {{"step of a usual token", "usual", 0.01, 2, 0.01, 0.5},
            {"step of token 8", "special", 0.01, 2, 0.01, 0.5}},
           R"(fast[0] = 0
slow[0] = 0
for t = 1 .. 20
  hit = larger(0, 1 - (t - 8) * (t - 8))   # 1 at token 8, else 0
  x[t] = 3 * hit + (1 - hit) * (1 - 2 * (t - 2 * floor(t / 2)))
  s = hit * special + (1 - hit) * usual
  fast[t] = exp(-2 * s) * fast[t-1] + s * x[t]
  slow[t] = exp(-s / 4) * slow[t-1] + s * x[t]
)",
           "token",
           "input and memory",
           {{"input", "x", true}, {"leaks fast", "fast"}, {"leaks slowly", "slow"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let $dt[2]$ be 0. How long is the step of token 2?",
       {{"dt", 2, {0}}},
       "answer = step[2]",
       {{"answer = 0", "softplus(0) = log(1 + exp(0)) is not zero; only dt = −infinity is no step"},
        {"answer = 1 / 2", "this is the sigmoid; softplus is log(1 + exp(dt))"},
        {"answer = 1", "this is exp(0); softplus is log(1 + exp(dt))"}},
       "softplus(x) = log(1 + exp(x))"},
      {"A number of memory has the rate A = −0.5, and every step is 0.2 long. Which part is left "
       "after "
       "10 tokens?",
       {},
       "answer = exp(-0.5 * 0.2 * 10)",
       {{"answer = exp(-0.5 * 0.2)", "this is the part left after one token"},
        {"answer = 1 - 0.5 * 0.2 * 10", "leaks multiply; they do not add up"},
        {"answer = exp(-0.5 * 10)", "you left out the length of the step"}},
       "steps add up to a time; the part left is exp(time times A)"},
      {"Let $x[2]$ be 3. What is the first entry of $h[2]$?",
       {{"x", 2, {3}}},
       "answer = at(h[2], 1)",
       {{"answer = step[2] * x[2] * at(B[2], 1)",
         "this is what flows in; token 1 has left something"},
        {"answer = at(h[1], 1) + step[2] * x[2] * at(B[2], 1)",
         "what token 1 left must leak first"},
        {"answer = at(each(keep[2], h[1]), 1) + x[2] * at(B[2], 1)",
         "what flows in has the length of the step as a factor"}},
       "leak h_1 by exp(step times A), entry 1, and add step times x times B, entry 1"},
      {"Let $dout$ be 1 at token 1 and zero elsewhere. What is $dx[1]$?",
       {{"dout", 0, {0}}, {"dout", 1, {1}}},
       "answer = dx[1]",
       {{"answer = step[1] * dot(C[1], B[1])", "x also goes past the memory, by D"},
        {"answer = dot(C[1], B[1]) + D", "what flows in has the length of the step as a factor"}},
       "o_1 is linear in x_1: which factor stands before it, through the memory and beside it?"}};
}

Lesson make() {
  Lesson l;
  l.name = "mamba";
  l.operation = "selective_scan";
  l.title = "Mamba: the selective scan";
  l.summary =
      "Each token sets how long its step in time is: what leaks away, and what is taken in.";
  l.first = {"linear", "gated_linear"};
  l.problem = kProblem;
  const char* const header = "kernels/selective_scan/selective_scan.h";
  l.names = {
      {"x[t]", "x", header, "the input of a channel, [B, T, E]"},
      {"dt[t]", "dt", header, "the step before softplus, [B, T, E]"},
      {"A_log", "A_log", header, "logarithms of the rates, [E, K]"},
      {"B[t]", "B", header, "into which numbers of memory the input flows, [B, T, K]"},
      {"C[t]", "C", header, "what is read, [B, T, K]"},
      {"D", "D", header, "the way beside the memory, [E]"},
      {"h[t]", "final_state", header, "the memory; after the last token an output"},
      {"step[t]", "softplus", "kernels/selective_scan/reference.h", "the length of the step"}};
  l.example = {{"x", {{1}, {2}, {-1}, {0.5}, {1.5}}},
               {"dt", {{0.5}, {-1}, {1}, {-0.5}, {0}}},
               {"A_log", {{0, -1}}},
               {"B", {{1, 0.5}, {0.5, 1}, {-1, 1}, {1, 1}, {0.5, -0.5}}},
               {"C", {{1, 0}, {0.5, 1}, {1, 1}, {-1, 0.5}, {1, -1}}},
               {"D", {{0.25}}},
               {"dout", {{1}, {-0.5}, {0.5}, {1}, {-1}}}};
  l.constants = {{"L", 2}};
  l.sliders = {{.label = "$dt[2]$", .name = "dt", .token = 2, .low = -6, .high = 3},
               {.label = "$dt[4]$", .name = "dt", .token = 4, .low = -6, .high = 3}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>There is no product of matrices here, so tensor cores hardly help: the work is additions,
multiplications and exponentials of single numbers. A warp of 32 threads owns 16 channels
and walks through the text by itself, with the memory in registers. Sums over the numbers of
memory are the one thing that tensor cores do: a product with a matrix of ones.</p>
<p>Compare the operations a byte with those of the other lessons. The rate that you fill in
above for products is that of tensor cores, which this mechanism cannot reach; its floor by
products is far too low. Exponentials, one for each token, channel and number of memory, are
the true limit.</p>)html";
  l.cost = R"html(
<p>Each token and channel pays for its $K$ numbers of memory. Nothing depends on the length.
In the formulas $H$ counts channels.</p>)html";
  l.forward_flops = "H * T * (7 * K + 10)";
  l.backward_flops = "H * T * (20 * K + 25)";
  l.recipe = small_recipe("mamba");
  l.experiments = experiments();
  l.exercises = exercises();
  return l;
}

const RegisteredLesson registered(50, make);

}  // namespace
}  // namespace weft::train
