// The lesson on attention over chosen blocks: by a pattern, and by what the blocks hold.
#include "kernels/block_sparse/block_sparse.h"

#include "kernels/block_sparse/patterns.h"
#include "kernels/selection/select_blocks.h"
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr const char* kProblem = R"html(
<p>Full attention looks at everything, a window at what is near. Between them lies the idea
to look at <b>some</b> of what is far. Which tokens? A processor works in tiles and gains
nothing by leaving out single pairs. So the text is cut into <b>blocks</b> of $C$ tokens, and
a block of queries sees a block of keys whole or not at all. A small table of zeros and ones,
the <b>mask</b>, says which.</p>
<p>There are two ways to make the mask, and they are the two halves of this page.</p>
<ul>
<li><b>By a pattern</b>, known before any text is read: the own block and some before it, as
a window does; the first block, which all others may use as a meeting place; every eighth
block; a few drawn at random. With a window, a first block and random ones any token reaches
any other within a few layers. The page takes the own block and the first one.</li>
<li><b>By the data</b>: each query scores the blocks of the past and sees the $top_k$ best.
To score a block without reading it, a query is compared with the mean of the block's
keys, one vector in place of $C$.</li>
</ul>
<p>Within the blocks that are seen, this is softmax attention to the letter.</p>
)html";

std::vector<LessonForm> forms();

// The first block and the last w: the pattern of this page, as the operation takes it.
Tensors pattern_of(const Values& n) {
  const auto whole = [&](const char* name) {
    return static_cast<int64_t>(n.at(name).at({}).at[0]);
  };
  const int64_t blocks = block_count(whole("T"), whole("C"));
  return {{"block_mask", longformer_blocks(blocks, whole("w"), 1)}};
}

// The program's own choice by the means of blocks, and its attention over what is chosen.
Values chosen_of(const Values& n) {
  const Tensor q = tokens_of(n, "q"), k = tokens_of(n, "k");
  const auto block = static_cast<int64_t>(n.at("C").at({}).at[0]);
  const Settings settings = {{"block", std::to_string(block)}};
  const Tensor means = operation("block_means").forward(Form::naive, {{"x", k}}, settings).at("y");
  SelectBlocks select;
  select.block = block;
  select.top_k = static_cast<int64_t>(n.at("top_k").at({}).at[0]);
  const Tensor mask = select_blocks(q, means, q.size(1), q.size(1), select);
  const Operation& op = operation("block_sparse");
  Values y = numbers_of(
      op.outputs(),
      op.forward(Form::naive, {{"q", q}, {"k", k}, {"v", tokens_of(n, "v")}, {"block_mask", mask}},
                 {{"block", std::to_string(block)},
                  {"by_token", "true"},
                  {"scale", number_setting(n, "scale")}}));
  const View<const uint8_t> at = view<const uint8_t>(mask);
  for (int64_t i = 0; i < q.size(1); ++i)
    for (int64_t c = 0; c <= i / block; ++c)
      y["chosen"][{i + 1, c + 1}] = number_value(at(0, 0, i, c));
  return y;
}

constexpr const char* kChoice = R"(for c = 1 .. floor(T / C)
  mean[c] = sum(j = (c - 1) * C + 1 .. c * C: k[j]) / C   # one vector for the whole block
for i = 1 .. T
  own = ceil(i / C)
  for c = 1 .. own - 1
    product[i, c] = dot(q[i], mean[c])
  for c = 1 .. own - 1
    later = sum(e = c + 1 .. own - 1: above(product[i, e], product[i, c]))   # with a larger one
    earlier = sum(e = 1 .. c - 1: 1 - above(product[i, c], product[i, e]))   # as large, or larger
    chosen[i, c] = above(top_k - 1, later + earlier)   # so few come first that it is seen
  chosen[i, own] = 1   # its own block is always among them
)";

std::vector<LessonForm> forms() {
  return {{"Naive: a mask over pairs",
           R"html(
<p>The first half: a pattern. The sign [x &gt; y] stands for 1 where $x$ is larger than $y$,
and for 0 where it is not. Block $c$ of keys is seen by block $a$ of queries if it is among
the last $w$ or if it is the first. A pair that is not seen has the weight 0.</p>)html",
           R"(for a = 1 .. ceil(T / C)
  for c = 1 .. a
    sees[a, c] = larger(above(w, a - c), above(2, c))   # among the last $w$, or the first
for i = 1 .. T
  for j = 1 .. i
    x[i, j] = scale * dot(q[i], k[j])
    seen[i, j] = sees[ceil(i / C), ceil(j / C)]   # the mask knows blocks, not tokens
  lse[i] = log(sum(j = 1 .. i: seen[i, j] * exp(x[i, j])))
  for j = 1 .. i
    p[i, j] = seen[i, j] * exp(x[i, j] - lse[i])   # 0 where it is not seen
  o[i] = sum(j = 1 .. i: p[i, j] * v[j])
)"},
          {"Recurrent: a stream that leaps",
           R"html(
<p>The stream of softmax attention. It walks over blocks, and over the keys of a block only if
the block is seen; else the loop over $j$ ends before it begins.</p>)html",
           R"(for a = 1 .. ceil(T / C)
  for c = 1 .. a
    sees[a, c] = larger(above(w, a - c), above(2, c))
for i = 1 .. T
  most = -infinity
  total = 0
  y = zeros(V)
  for c = 1 .. ceil(i / C)
    last = sees[ceil(i / C), c] * smaller(c * C, i)   # 0 where the block is not seen
    for j = (c - 1) * C + 1 .. last
      x = scale * dot(q[i], k[j])
      next = larger(most, x)
      total = exp(most - next) * total + exp(x - next)
      y = exp(most - next) * y + exp(x - next) * v[j]
      most = next
  o[i] = y / total
  lse[i] = most + log(total)
)"},
          {"Chunkwise: tiles from a list",
           R"html(
<p>A block of queries works together. It takes from the mask the list of its blocks of keys;
each is a tile, so two products of matrices. A block that no list names is never loaded. Only
the tile on the diagonal needs a mask of single pairs.</p>)html",
           R"(for a = 1 .. ceil(T / C)
  for c = 1 .. a
    sees[a, c] = larger(above(w, a - c), above(2, c))
for a = 1 .. ceil(T / C)
  first = (a - 1) * C + 1
  end = smaller(a * C, T)
  for i = first .. end
    most[i] = -infinity
    total[i] = 0
    y[i] = zeros(V)
  for c = 1 .. a
    for i = first .. sees[a, c] * end   # a tile of the list, for all queries of the block
      last = smaller(c * C, i)
      next = larger(most[i], largest(j = (c - 1) * C + 1 .. last: scale * dot(q[i], k[j])))
      shrink = exp(most[i] - next)
      for j = (c - 1) * C + 1 .. last
        e[i, j] = exp(scale * dot(q[i], k[j]) - next)
      total[i] = shrink * total[i] + sum(j = (c - 1) * C + 1 .. last: e[i, j])
      y[i] = shrink * y[i] + sum(j = (c - 1) * C + 1 .. last: e[i, j] * v[j])
      most[i] = next
  for i = first .. end
    o[i] = y[i] / total[i]
    lse[i] = most[i] + log(total[i])
)"},
          {"The second half: the data choose",
           R"html(
<p>Now each query makes its own row of the mask. It sees its own block and, of the complete
blocks before it, the $top_k - 1$ whose mean key has the largest dot product with the query. A
block's place in the order is the number of blocks with a larger one; of two equal ones the
earlier counts as larger. Models of this kind are known as MoBA.</p>
<p>The choice has no gradient: move a key a little, and the same blocks are chosen. What
learns are the queries and keys of the blocks that were seen. The program chooses by
`select_blocks`, and the check above compares its choice with the one of this page.</p>)html",
           concat(kChoice, R"(for i = 1 .. T
  for j = 1 .. i
    e[i, j] = chosen[i, ceil(j / C)] * exp(scale * dot(q[i], k[j]))
  lse[i] = log(sum(j = 1 .. i: e[i, j]))
  o[i] = sum(j = 1 .. i: e[i, j] * v[j]) / exp(lse[i])
)"),
           chosen_of}};
}

LessonForm gradient() {
  return {"",
          R"html(
<p>The derivation is that of softmax attention: a value gets $p[i, j] * dout[i]$; a score gets its
weight times (what its value brings less the mean, $delta[i]$); query and key get each other. A
pair that is not seen has the weight $p[i, j] = 0$, and in every line below the weight is a
factor. So the same lines hold, and the code leaves out the
same tiles. Only the lists are turned round: a block of keys needs to know which blocks of
queries see it.</p>)html",
          R"(for i = 1 .. T
  delta[i] = dot(dout[i], o[i])
  for j = 1 .. i
    dx[i, j] = p[i, j] * (dot(dout[i], v[j]) - delta[i])   # 0 where it is not seen
  dq[i] = scale * sum(j = 1 .. i: dx[i, j] * k[j])
for j = 1 .. T
  dk[j] = scale * sum(i = j .. T: dx[i, j] * q[i])
  dv[j] = sum(i = j .. T: p[i, j] * dout[i])
)"};
}

std::vector<Experiment> experiments() {
  return {{"A needle in a block",
           R"html(
<p>One key among many has a large dot product with the query: the needle. It lies in block 11
of 16. The dot products of the other keys are chance, between −1 and 1. The query sees means of
blocks alone; the dots say which blocks it chooses. In blocks of one token the needle stands
out. The longer the blocks, the more of its neighbours are mixed in, and a weak needle is
lost. Let more blocks be chosen, and
it is found again, at a price.</p>)html",
           {{"tokens of a block", "C", 1, 16, 1, 4},
            {"dot product of the needle", "needle", 0, 10, 0.5, 4},
            {"blocks chosen", "top_k", 1, 8, 1, 2}},
           R"(for c = 1 .. 16
  chance = 0
  for j = (c - 1) * C + 1 .. c * C - 1
    u = j * j * 0.6180339887
    chance = chance + 2 * (u - floor(u)) - 1   # between −1 and 1
  u = c * c * 0.7548776662
  other = 2 * (u - floor(u)) - 1
  hit = larger(0, 1 - (c - 11) * (c - 11))   # 1 at block 11, else 0
  product[c] = (chance + hit * needle + (1 - hit) * other) / C
for c = 1 .. 16
  later = sum(e = c + 1 .. 16: above(product[e], product[c]))
  earlier = sum(e = 1 .. c - 1: 1 - above(product[c], product[e]))
  chosen[c] = above(top_k, later + earlier)
)",
           "block",
           "dot product and choice",
           {{"dot product of the mean", "product"}, {"chosen", "chosen", true}}}};
}

std::vector<Exercise> exercises() {
  return {
      {"How many keys does token 8 see, with the first block and its own?",
       {},
       "answer = sum(j = 1 .. 8: seen[8, j])",
       {{"answer = 2", "two blocks, of two tokens each"},
        {"answer = 8", "this is without a mask; blocks 2 and 3 are not seen"},
        {"answer = 3", "its own block is complete, because token 8 ends it"}},
       "block 1 has two tokens, and block 4 has two up to token 8"},
      {"Let $w$ be 2: a block sees itself, the one before it, and the first. How many pairs of a "
       "query and a key are seen in the whole text of eight tokens?",
       {{"w", 0, {2}}},
       "answer = sum(i = 1 .. T: sum(j = 1 .. i: seen[i, j]))",
       {{"answer = 8 * 9 / 2", "the last block does not see block 2"},
        {"answer = 3 + 3 * (3 + 4)", "this is with w = 1; now a block sees the one before it too"}},
       "count for each block of queries: its own block gives 3 pairs, every other one it sees 4"},
      {"Let all keys be (1, 1). What is the weight $p[8, 1]$?",
       {{"k", 0, {1, 1}}},
       "answer = p[8, 1]",
       {{"answer = 1 / 8", "the weights are spread over the keys that are seen, not over all"},
        {"answer = 1 / 2", "two blocks are seen, but a weight belongs to a key"}},
       "all scores that are seen are equal; how many keys does token 8 see?"},
      {"Now the second half. Let the query of token 7 be (0, 1). It chooses one block beside its "
       "own. Which number has it?",
       {{"q", 7, {0, 1}}},
       concat(kChoice, "answer = sum(c = 1 .. 3: c * chosen[7, c])\n"),
       {{"answer = 4", "this is its own block; which other one has the largest product?"},
        {concat(kChoice, "answer = sum(c = 1 .. 3: c * (1 - chosen[7, c])) / 2\n"),
         "a block is chosen, not left out: take the largest product"}},
       "make the mean of the keys of blocks 1, 2 and 3, and multiply each with the query"}};
}

Lesson make() {
  Lesson l;
  l.name = l.operation = "block_sparse";
  l.title = "Attention over chosen blocks";
  l.summary =
      "Blocks of tokens see some blocks of the past, by a pattern or by what their keys say.";
  l.first = {"attention", "window"};
  l.problem = kProblem;
  const char* const header = "kernels/block_sparse/block_sparse.h";
  const char* const reference = "kernels/block_sparse/reference.h";
  const char* const select = "kernels/selection/select_blocks.h";
  l.names = {{"C", "block", header, "tokens of a block"},
             {"sees[a, c]", "block_mask", header, "1 where a block of queries sees one of keys"},
             {"w", "width", "kernels/block_sparse/patterns.h", "how many of the last blocks"},
             {"seen[i, j]", "Mask", reference, "whether a query sees a key"},
             {"x[i, j]", "score", reference, "how well key j fits query i"},
             {"lse[i]", "lse", header, "log of the sum of the exponentials, [B, H, T]"},
             {"o[i]", "o", header, "the result, [B, T, H, V]"},
             {"mean[c]", "means", select, "the mean key of a block"},
             {"product[i, c]", "q . mean(c)", select, "dot product of the mean with a query"},
             {"top_k", "top_k", select, "blocks that a query sees, its own included"},
             {"delta[i]", "delta", reference, "what softmax takes off a gradient"}};
  l.example = {
      {"q", {{1, 0}, {0.5, 1}, {-1, 1}, {2, 0.5}, {0.3, 1}, {1, -1}, {0.7, -0.4}, {-0.6, 1}}},
      {"k",
       {{1, 0.5}, {0, 1}, {-1, 0.5}, {1.5, -0.5}, {0.5, 0.6}, {1, 1.2}, {-1, 0.1}, {0.4, 0.8}}},
      {"v", {{1, 0}, {0, 1}, {2, -1}, {-1, 3}, {1, 1}, {-2, 1}, {3, 0}, {0.5, -1}}},
      {"dout", {{1, 0}, {0.5, -1}, {0, 1}, {1, 1}, {-1, 0.5}, {0.5, 0}, {0, 1}, {1, -1}}}};
  l.settings = {{"scale", "0.7"}, {"block", "2"}};
  l.symbols = {{"scale", "scale"}, {"block", "C"}};
  l.constants = {{"w", 1}, {"top_k", 2}};
  l.index = pattern_of;
  l.index_names = {"block_mask"};
  l.index_python =
      "a, c = np.indices((6, 6))  # blocks of two tokens: the own one and the first are seen\n"
      "block_mask = ((a == c) | (c == 0)).astype(np.uint8)[None]\n";
  l.sliders = {
      {.label = "$w$: how many of the last blocks (first half)",
       .name = "w",
       .low = 1,
       .high = 5,
       .step = 1},
      {.label = "$top_k$: how many blocks are chosen (second half)",
       .name = "top_k",
       .low = 1,
       .high = 5,
       .step = 1},
      {.label = "first entry of key 4", .name = "k", .token = 4, .entry = 1, .low = -2, .high = 2}};
  l.forms = forms();
  l.gradient = gradient();
  l.gpu = R"html(
<p>A small kernel first turns the mask into lists, one for each tile of queries: the tiles of
keys that it meets. Then the kernel of softmax attention runs, and its loop takes tiles from
the list in place of all. Nothing of the mask is read on the host, so a mask may also be the
work of a kernel, as in the second half.</p>
<p>Tensor cores multiply tiles of 64 or 128. A smaller block still costs a whole tile: half
of the products are made and thrown away. That is why blocks of fewer than 64 tokens gain
nothing; the lesson on memory shows it on a plain product. The query's own choice has a price
too: neighbours in a tile choose different blocks, and the tile must take what any of them
chose.</p>)html";
  l.cost = R"html(
<p>$A$ is the number of pairs that are seen. A pattern with $n$ blocks a row has about $n * C
* T$ of them, so for a long text the work grows with the length, not with its square. The
measured operation sees the first block, the last three and three at random, of 64 tokens
each. Up to 448 tokens these are all there are, and the time still grows with the square.
Choosing by the data costs one product with each mean beside it, and there are $T / C$
means: a square again, but $C$ times smaller.</p>)html";
  l.forward_flops = "H * 2 * A * (K + V)";
  l.backward_flops = "H * 2 * A * (3 * K + 2 * V)";
  l.recipe = R"(
[model]
width = 32
layers = 2
pattern = ["block_sparse", "moba"]
context = 256
mlp = "none"
[block_sparse]
pattern = "longformer"
heads = 2
block = 4
window_blocks = 1
[moba]
heads = 2
block = 4
top_k = 2
)";
  l.experiments = experiments();
  l.exercises = exercises();
  l.wrong_settings = {
      {{{"causal", "false"}}, "a query of yours sees the keys behind it; the form is causal"},
      {{{"scale", "1"}}, "your scores lack their factor; it is 1 over the root of K"}};
  return l;
}

const RegisteredLesson registered(14, make);

}  // namespace
}  // namespace weft::train
