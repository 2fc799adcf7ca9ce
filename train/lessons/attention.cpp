// The lesson on softmax attention.
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

constexpr const char* kProblem = R"html(
<p>A text is a row of tokens: letters, pieces of words, or words. A model holds a list of
numbers, a <b>vector</b>, for each token. To guess the next token, the model must carry
facts from early tokens to late ones. In “Anna took the key. Later <i>she</i>”, the token
“she” needs something from “Anna”, and nobody knows beforehand how far away “Anna” will
be.</p>
<p>Attention solves this by a search. Each token makes three vectors from its own
numbers:</p>
<ul>
<li>a <b>query</b> $q[i]$: what token $i$ looks for;</li>
<li>a <b>key</b> $k[j]$: what token $j$ can be found by;</li>
<li>a <b>value</b> $v[j]$: what token $j$ hands over when it is found.</li>
</ul>
<p>The <b>dot product</b> $dot(q[i], k[j])$ multiplies the two vectors entry by entry and
adds up. It is large where both point the same way. So it says how well token $j$ fits the
search of token $i$. Attention turns these products into weights: it takes the exponential of
each, which is positive and grows fast, and divides by their sum. The weights then add up to
one. This is called <b>softmax</b>. The result is the sum of the values, each times its
weight.</p>
<p>A token may look at itself and at tokens before it, never at later ones. This is called
<b>causal</b>. Without it the model could read the answer that it should guess.</p>
)html";

std::vector<LessonForm> forms() {
  return {{"Naive: as it is written on paper",
           R"html(
<p>For each token: the scores of all keys that it sees, then one softmax. This makes a
number for each pair of tokens, so the work grows with the square of the length.</p>)html",
           R"(for i = 1 .. T
  for j = 1 .. i
    x[i, j] = scale * dot(q[i], k[j])   # score: how well key $j$ fits query $i$
  lse[i] = log(sum(j = 1 .. i: exp(x[i, j])))   # so that the weights add up to one
  for j = 1 .. i
    p[i, j] = exp(x[i, j] - lse[i])   # weight of value $j$, between 0 and 1
  o[i] = sum(j = 1 .. i: p[i, j] * v[j])   # the weighted mean of the values
)"},
          {"Recurrent: one key after the other",
           R"html(
<p>The same result as a stream of keys. It keeps the largest score so far and the sums so
far. $exp(x)$ itself is never formed, because it overflows for large scores; $exp(x - most)$
is at most one. When a larger score comes, everything that was gathered is made smaller by
one factor, `shrink`.</p>
<p>Attention has no state of fixed size: token $i$ needs the keys and values of all tokens
before it. A program that writes text keeps them in a cache, which grows with the text.</p>)html",
           R"(for i = 1 .. T
  most = -infinity   # the largest score so far
  total = 0   # the sum of weights so far
  y = zeros(V)   # the values gathered so far, not yet divided
  for j = 1 .. i
    x = scale * dot(q[i], k[j])
    next = larger(most, x)
    shrink = exp(most - next)   # 1 where the maximum stays
    w = exp(x - next)   # at most 1
    total = shrink * total + w
    y = shrink * y + w * v[j]
    most = next
  o[i] = y / total
  lse[i] = most + log(total)
)"},
          {"Chunkwise: a tile of keys at a time",
           R"html(
<p>The stream again, but a step is now a tile of $C$ keys. The scores of a tile are a
product of two matrices, which is what processors do best. Here $C = 2$; the code takes 64
keys for 64 queries at once. Only one tile of scores exists at a time, so memory grows with
the length, not with its square.</p>)html",
           R"(for i = 1 .. T
  most = -infinity
  total = 0
  y = zeros(V)
  for J = 1 .. ceil(i / C)   # tiles of keys
    first = (J - 1) * C + 1
    last = smaller(J * C, i)   # the mask: a query sees no later key
    for j = first .. last
      x[i, j] = scale * dot(q[i], k[j])   # a tile of these is one product of matrices
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
<p>The <b>loss</b> is one number that says how wrong a model's guesses are. Training asks:
if some number in the model grows a little, by how much does the loss grow? The answer is
the <b>gradient</b> of that number. $dout[i]$ is the answer for the result $o[i]$, and it
comes from the layers above. We want the same for $q$, $k$ and $v$. Three facts are
enough.</p>
<ul>
<li>$o[i]$ is a sum of $p[i, j] * v[j]$. So $v[j]$ gets $p[i, j] * dout[i]$ from each query
$i$ that sees it, and the weight $p[i, j]$ gets the number $dot(dout[i], v[j])$.</li>
<li>The weights add up to one. If one score rises, its weight rises and all others fall. The
chain rule for softmax is: score $x[i, j]$ gets $p[i, j]$ times (its own weight's gradient
minus the mean of all weights' gradients). That mean is $sum(j = 1 .. i: p[i, j] *
dot(dout[i], v[j]))$, and this is $dot(dout[i], o[i])$. The code calls it `delta`. No sum
over keys is needed for it.</li>
<li>$x[i, j] = scale * dot(q[i], k[j])$, so the query gets the key, and the key gets the
query.</li>
</ul>
<p>The backward pass of the code keeps only $lse$ from the forward pass, and makes each
weight again as $exp(x[i, j] - lse[i])$, tile by tile.</p>)html",
          R"(for i = 1 .. T
  delta[i] = dot(dout[i], o[i])   # the mean of the weights' gradients
  for j = 1 .. i
    dx[i, j] = p[i, j] * (dot(dout[i], v[j]) - delta[i])   # gradient of the score
  dq[i] = scale * sum(j = 1 .. i: dx[i, j] * k[j])
for j = 1 .. T
  dk[j] = scale * sum(i = j .. T: dx[i, j] * q[i])   # from every query that sees key $j$
  dv[j] = sum(i = j .. T: p[i, j] * dout[i])
)"};
}

std::vector<Experiment> experiments() {
  return {{"Sharp and flat",
           R"html(
<p>One query meets nine keys; key 5 fits best. With a small $scale$ all weights are nearly
equal, and the result is a plain mean. With a large one the best key takes everything, and
softmax has become a look-up. The dots show the dot products, the line the weights.</p>)html",
           {{"$scale$", "scale", 0, 20, 0.5, 3}},
           R"(for j = 1 .. 9
  product[j] = 1 - (j - 5) * (j - 5) / 16
lse = log(sum(j = 1 .. 9: exp(scale * product[j])))
for j = 1 .. 9
  p[j] = exp(scale * product[j] - lse)
)",
           "key",
           "dot product and weight",
           {{"dot product", "product", true}, {"weight", "p"}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"Let the query of token 3 be (1, 1). What is the score $x[3, 1]$?",
       {{"q", 3, {1, 1}}},
       "answer = x[3, 1]",
       {{"answer = dot(q[3], k[1])", "this is the dot product; the score is scale times that"},
        {"answer = dot(q[3], k[1]) / sqrt(K)",
         "K^-1/2 is the usual scale; this example has one of its own, see the table of inputs"},
        {"answer = scale * dot(q[1], k[3])", "x[3, 1] is of query 3 and key 1, not the reverse"}},
       "multiply query 3 and key 1 entry by entry, add up, and multiply by scale"},
      {"Let all keys be (1, 1). What is the weight $p[4, 2]$?",
       {{"k", 0, {1, 1}}},
       "answer = p[4, 2]",
       {{"answer = exp(x[4, 2])", "this is not divided by the sum yet: the weights add up to one"},
        {"answer = p[3, 2]", "token 4 sees four keys: a token sees itself"},
        {"answer = p[2, 2]",
         "token 4 sees four keys, and its weights are spread over all of them"}},
       "all four scores of token 4 are equal; what are four equal weights that add up to one?"},
      {"Let $dout$ be (1, 0) at token 4 and zero elsewhere. What is the first entry of $dv[4]$?",
       {{"dout", 0, {0, 0}}, {"dout", 4, {1, 0}}},
       "answer = p[4, 4]",
       {{"answer = 1", "the value is mixed with a weight; its gradient has that weight too"},
        {"answer = p[4, 1]", "this is the weight of value 1, the question is of value 4"}},
       "value 4 is read by query 4 alone; with which weight?"},
      {"A causal text has 100 tokens. How many pairs of a query and a key are there?",
       {},
       "answer = 100 * 101 / 2",
       {{"answer = 100 * 100", "this counts keys behind the query too; a query sees no later key"},
        {"answer = 100 * 99 / 2", "a token sees itself too"}},
       "token 1 sees one key, token 2 sees two, and so on; add up"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "attention";
  l.title = "Softmax attention";
  l.summary = "Every token asks all tokens before it, and takes a weighted mean of what they hold.";
  l.problem = kProblem;
  l.names = {
      {"q[i]", "q", "kernels/attention/attention.h", "queries, [B, T, H, K]: K numbers a token"},
      {"k[j]", "k", "kernels/attention/attention.h", "keys, [B, S, Hk, K]"},
      {"v[j]", "v", "kernels/attention/attention.h", "values, [B, S, Hk, V]"},
      {"scale", "scale_of", "kernels/attention/reference.h",
       "factor of the dot products: 1 over the root of K, unless a recipe says otherwise"},
      {"x[i, j]", "score", "kernels/attention/reference.h", "how well key j fits query i"},
      {"most", "most", "kernels/attention/reference.h", "the largest score so far"},
      {"total", "sum", "kernels/attention/reference.h", "the sum of the weights so far"},
      {"lse[i]", "lse", "kernels/attention/attention.h",
       "log of the sum of the exponentials of the scores, [B, H, T]"},
      {"p[i, j]", "p", "kernels/attention/reference.h", "weight of value j for query i"},
      {"o[i]", "o", "kernels/attention/attention.h", "the result, [B, T, H, V]"},
      {"delta[i]", "delta", "kernels/attention/reference.h", "what softmax takes off a gradient"}};
  l.example = {{"q", {{1, 0}, {0.5, 1}, {-1, 1}, {2, 0.5}}},
               {"k", {{1, 0.5}, {0, 1}, {-1, 0.5}, {1.5, -0.5}}},
               {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}}},
               {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}}}};
  l.settings = {{"scale", "0.7"}};
  l.constants = {{"C", 2}};
  l.sliders = {
      {.label = "$scale$: how sharp the search is",
       .name = "scale",
       .low = 0.1,
       .high = 4,
       .step = 0.1},
      {.label = "first entry of key 1", .name = "k", .token = 1, .entry = 1, .low = -2, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>A block of threads owns a tile of 64 or 128 queries. It keeps their results in registers
and walks over tiles of keys and values: load a tile, multiply for the scores, take
exponentials, multiply again with the values. Both products run on tensor cores. The scores
never leave the chip.</p>
<p>What limits it? Each key that is loaded meets a whole tile of queries, so there are many
operations for each byte. The table below shows this: the operations for each byte grow with
the length. Products are the limit, and softmax's exponentials must hide behind them.</p>)html";
  l.cost =
      R"html(
<p>A text of $T$ tokens has $T * (T + 1) / 2$ pairs of a query and a key that it sees. Each
pair costs one dot product of width $K$ and one addition of a value of width $V$; a product
and a sum are two operations. Twice the length is four times the work. Memory beside inputs
and outputs grows with the length alone.</p>)html";
  l.forward_flops = "H * 2 * (T * (T + 1) / 2) * (K + V)";
  l.backward_flops = "H * 2 * (T * (T + 1) / 2) * (3 * K + 2 * V)";
  l.recipe = small_recipe("attention", "heads = 2");
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"causal", "false"}}, "a query of yours sees the keys behind it; the form is causal"},
      {{{"scale", "1"}}, "your scores lack their factor; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(10, make);

}  // namespace
}  // namespace weft::train
