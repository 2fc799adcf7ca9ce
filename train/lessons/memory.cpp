// The lesson on a processor's memory: tiles, what they save, and why small blocks gain nothing.
#include <cmath>

#include "core/units.h"
#include "kernels/block_sparse/patterns.h"
#include "train/lessons/lesson.h"
#include "train/lessons/lesson_sections.h"
#include "train/workbench/timing.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr const char* kProblem = R"html(
<p>A processor computes faster than its memory can bring the numbers. So there are several
memories, each smaller and faster than the one below it. On a GPU, from the bottom:</p>
<ul>
<li>the <b>main memory</b> of the card: tens of gigabytes, a few terabytes a second;</li>
<li>a <b>cache</b> that all parts of the chip share: tens of megabytes, a few times
faster;</li>
<li><b>shared memory</b>, beside the arithmetic: a few hundred kilobytes for each of about a
hundred parts of the chip, ten times faster;</li>
<li><b>registers</b>, in the arithmetic itself: as fast as it is.</li>
</ul>
<p>A CPU is built the same way, with caches named L1, L2 and L3. A number that is brought up
once and used often is cheap; one that is used once costs its way. The measure is the number
of <b>operations a byte</b>: what is computed for each byte that is brought up. If it is lower
than the ratio of the two rates, the arithmetic waits for the memory.</p>
<p>The product of two matrices shows what can be done. Each of the $n * n$ results needs $n$
numbers of either matrix. If all were brought up for each result, that would be $2 * n * n *
n$ numbers for as many operations. But cut the result into <b>tiles</b> of $b$ rows and
columns: a tile of either matrix, once in fast memory, serves $b$ times. The whole product
then brings up $b$ times less.</p>
<p>The tile is also the smallest thing that tensor cores can do at full speed. This is why
all mechanisms of these lessons are written in chunks, and it is why a pattern with blocks
smaller than a tile saves nothing.</p>
)html";

// How often the tiled product below brought a number up, and how many operations it made.
struct Work {
  double loads = 0, operations = 0;
};

// c = a b, of n rows and columns, in tiles of `tile`: each tile of a and b is copied to fast memory
// and multiplied there. The last tile of a row may be smaller.
Work tiled_product(int64_t n, int64_t tile, const float* a, const float* b, float* c) {
  std::vector<float> ours(static_cast<size_t>(tile * tile)), theirs(ours.size());
  Work work;
  const auto load = [&](const float* from, int64_t i, int64_t j, std::vector<float>& to) {
    const int64_t rows = std::min(tile, n - i), columns = std::min(tile, n - j);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(from + (i + r) * n + j, columns, to.data() + r * tile);
    work.loads += static_cast<double>(rows * columns);
  };
  std::fill_n(c, n * n, 0.0F);
  for (int64_t i = 0; i < n; i += tile)
    for (int64_t j = 0; j < n; j += tile)
      for (int64_t m = 0; m < n; m += tile) {
        load(a, i, m, ours);
        load(b, m, j, theirs);
        const int64_t rows = std::min(tile, n - i), columns = std::min(tile, n - j),
                      depth = std::min(tile, n - m);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t k = 0; k < depth; ++k) {
            const float factor = ours[static_cast<size_t>(r * tile + k)];
            const float* const row = theirs.data() + k * tile;
            float* const out = c + (i + r) * n + j;
            for (int64_t s = 0; s < columns; ++s) out[s] += factor * row[s];
          }
        work.operations += 2 * static_cast<double>(rows * columns * depth);
      }
  return work;
}

int64_t whole(const Values& n, const char* name) {
  return static_cast<int64_t>(n.at(name).at({}).at[0]);
}

Values product_of(const Values& n) {
  const int64_t size = whole(n, "n"), tile = int64_t{1} << whole(n, "level");
  const std::vector<float> a(static_cast<size_t>(size * size), 1.0F);
  std::vector<float> c = a;
  const Work work = tiled_product(size, tile, a.data(), a.data(), c.data());
  Values y;
  y["loads"][{}] = number_value(work.loads);
  y["operations"][{}] = number_value(work.operations);
  y["intensity"][{}] = number_value(work.operations / (4 * work.loads));
  return y;
}

// The tiles of pairs that a kernel must compute for the mask, counted by walking its blocks.
Values covered_of(const Values& n) {
  const int64_t T = whole(n, "T"), tile = whole(n, "tile"), block = int64_t{1} << whole(n, "level");
  const Tensor mask = strided_blocks(block_count(T, block), whole(n, "step"));
  const View<const uint8_t> sees = view<const uint8_t>(mask);
  double tiles = 0;
  for (int64_t I = 0; I < T; I += tile)
    for (int64_t J = 0; J <= I; J += tile) {
      bool touched = false;
      for (int64_t i = I; i < I + tile; ++i)
        for (int64_t j = J; j < J + tile; ++j)
          touched |= j <= i && sees(0, i / block, j / block) != 0;
      tiles += touched;
    }
  Values y;
  y["computed"][{}] = number_value(tiles * static_cast<double>(tile * tile));
  y["wanted"][{}] = number_value(causal_pairs(mask, 0, block, T));
  return y;
}

std::vector<LessonForm> forms() {
  return {{"A product in tiles, counted",
           R"html(
<p>What a product of two matrices of $n = 16$ rows and columns brings up, in tiles of $b$. One
step of the loop is one tile of each matrix, brought up, multiplied and left. Move the slider:
the operations stay, the loads fall by half with each doubling of the tile. The program counts
the same in the tiled product that it measures in the next section.</p>)html",
           R"(b = floor(exp(level * log(2)) + 0.5)   # 1, 2, 4, 8, 16: the tile
loads = 0   # numbers brought up
operations = 0
for I = 1 .. n / b
  for J = 1 .. n / b   # a tile of the result
    for M = 1 .. n / b   # tiles along a row of one matrix and down a column of the other
      loads = loads + 2 * b * b
      operations = operations + 2 * b * b * b   # a product and a sum each
intensity = operations / (4 * loads)   # operations a byte; a number has 4 bytes
)",
           product_of},
          {"Blocks smaller than a tile",
           R"html(
<p>A text of 32 tokens, in blocks of $b$. Every block sees itself and each fourth block before
it, so about a quarter of all pairs are $wanted$, whatever $b$ is. The processor works in tiles
of 4 by 4 pairs: it computes a tile whole if any pair in it is wanted. With blocks of 4 or
more a tile is wanted whole (but on the diagonal). With smaller ones every tile holds something
that is wanted, and nothing is saved: the kernel computes all of them, and throws most of its
work away. On a GPU the tile is 64 or 128.</p>)html",
           R"(b = floor(exp(level * log(2)) + 0.5)   # tokens of a block
for a = 1 .. T / b
  for c = 1 .. a
    sees[a, c] = above(1, (a - c) - step * floor((a - c) / step))   # each fourth block
wanted = 0
for i = 1 .. T
  wanted = wanted + sum(j = 1 .. i: sees[ceil(i / b), ceil(j / b)])
computed = 0
for I = 1 .. T / tile
  for J = 1 .. I
    top = ceil((I * tile - tile + 1) / b)   # the first and the last block of queries in the tile
    bottom = ceil(I * tile / b)
    left = ceil((J * tile - tile + 1) / b)
    right = ceil(J * tile / b)
    touched = largest(a = top .. bottom: largest(c = left .. smaller(a, right): sees[a, c]))
    computed = computed + tile * tile * larger(0, touched)
share = wanted / computed   # the part of the work that is used
)",
           covered_of}};
}

std::vector<Experiment> experiments() {
  return {{"Which floor?",
           R"html(
<p>A product of two matrices of $n$ rows and columns, in numbers of two bytes, on a card with
the rates that you choose. No program can be faster than its operations at the rate of
products, nor than its bytes at the rate of memory. The curves are the two times for tiles of 8,
16, … 256, as if nothing but the tile were kept on the chip. Where they cross, the arithmetic
stops waiting. A faster chip with the same memory needs larger tiles.</p>)html",
           {{"$n$, in thousands", "n", 1, 16, 1, 4},
            {"products, TFLOP/s", "rate", 50, 2000, 50, 800},
            {"memory, TB/s", "memory", 0.5, 8, 0.5, 3}},
           R"(for m = 3 .. 8
  b = floor(exp(m * log(2)) + 0.5)
  products[m] = 2 * n * n * n / rate   # milliseconds
  bytes[m] = 4 * n * n * n / (b * memory)
)",
           "tile, as a power of 2",
           "ms",
           {{"time of the products", "products"}, {"time of the bytes", "bytes"}}}};
}

// Numbers a second out of a buffer that is read again and again.
std::vector<std::string> reading(int64_t kib, double budget) {
  std::vector<float> buffer(static_cast<size_t>(kib * 256), 1.0F);
  const int64_t times = std::max<int64_t>(1, 8192 / kib);
  float kept = 0;
  const Seconds s = seconds_of(budget, [&] {
    for (int64_t i = 0; i < times; ++i) {
      float sums[16] = {};
      for (size_t at = 0; at < buffer.size(); at += 16)
        for (size_t lane = 0; lane < 16; ++lane) sums[lane] += buffer[at + lane];
      for (const float x : sums) kept += x;
      buffer[0] = kept * 0;  // so that no round can be left out
    }
  });
  const double bytes = static_cast<double>(times * kib * 1024);
  return {bytes_text(static_cast<double>(kib * 1024)), number_text("%.1f", bytes / s.best / 1e9)};
}

std::string caches(double budget) {
  std::vector<std::vector<std::string>> rows;
  for (int64_t kib = 16; kib <= 65536; kib *= 4) rows.push_back(reading(kib, budget));
  return concat(
      "<h3>The memories of this processor</h3>\n<p>One thread reads a buffer again and "
      "again. While the buffer fits into a cache, its numbers come from there. Each fall "
      "of the rate is the end of one.</p>\n",
      lesson_table({"buffer", "GB/s"}, rows));
}

std::string products(double budget) {
  constexpr int64_t n = 512;
  const std::vector<float> a(n * n, 0.5F);
  std::vector<float> c(n * n);
  std::vector<std::vector<std::string>> rows;
  Curve curve{"GFLOP/s", {}, {}, 0};
  for (int64_t tile = 4; tile <= n; tile *= 2) {
    Work work;
    const Seconds s =
        seconds_of(budget, [&] { work = tiled_product(n, tile, a.data(), a.data(), c.data()); });
    const double rate = work.operations / s.best / 1e9;
    curve.x.push_back(std::log2(tile));
    curve.y.push_back(rate);
    rows.push_back({std::to_string(tile), bytes_text(4 * work.loads),
                    number_text("%.1f", work.operations / (4 * work.loads)),
                    number_text("%.1f", 1e3 * s.best), number_text("%.2f", rate)});
  }
  return concat(
      "<h3>The tiled product</h3>\n<p>The product of the section before, of ", n,
      " rows and columns in f32, by one thread of this processor. It is written plainly, as the "
      "loops stand there; the program's own kernels are several times faster. Small tiles bring up "
      "more than they use, and their loops are short. Tiles that no longer fit into a fast "
      "cache lose again.</p>\n<div class=\"pair\">",
      lesson_chart({"GFLOP/s", "tile, as a power of 2", {curve}}),
      lesson_table({"tile", "brought up", "operations a byte", "ms", "GFLOP/s"}, rows), "</div>\n");
}

// Attention over blocks of a size, a quarter of them: milliseconds and the time of a wanted pair.
std::vector<std::string> sparse(int64_t block, double budget, double& dense) {
  constexpr int64_t T = 1024, H = 2, K = 64;
  const Tensor mask =
      block == 0 ? window_blocks(T / 64, T / 64) : strided_blocks(block_count(T, block), 4);
  const int64_t size = block == 0 ? 64 : block;
  Tensors in = {{"block_mask", mask}};
  for (const char* name : {"q", "k", "v"}) in[name] = normal({1, T, H, K}, 1, name).to(Dtype::f32);
  const Operation& op = operation("block_sparse");
  const Settings settings = {{"block", std::to_string(size)}};
  const double s = seconds_of(budget, [&] { op.forward(Form::chunkwise, in, settings); }).best;
  const double pairs = causal_pairs(mask, 0, size, T);
  if (block == 0) dense = s;
  return {block == 0 ? std::string("all blocks") : std::to_string(block),
          number_text("%.0f", pairs), number_text("%.2f", 1e3 * s),
          number_text("%.2f", 1e9 * s / (pairs * H)), number_text("%.2f", dense / s)};
}

std::string blocks(double budget) {
  std::vector<std::vector<std::string>> rows;
  double dense = 0;
  for (const int64_t block : {0, 4, 8, 16, 32, 64, 128})
    rows.push_back(sparse(block, budget, dense));
  return concat(
      "<h3>Blocks of many sizes</h3>\n<p>The program's <code>block_sparse</code> on 1024 tokens, "
      "forward, on all threads. Each block sees itself and each fourth block before it, so all "
      "rows "
      "but the first have the same number of pairs. What a pair costs shows how much of the "
      "work is thrown away, or spent on lists. The last column is how much faster it is than "
      "looking at everything; four would be all that leaving out can give.</p>\n",
      lesson_table({"tokens of a block", "pairs", "ms", "ns a pair", "times faster than all"},
                   rows));
}

std::string measure(double budget) {
  if (budget == 0) return "<p>Nothing was timed for this page (<code>--budget 0</code>).</p>\n";
  return concat(
      "<p>Everything here was measured as the page was made. Other programs on the "
      "machine disturb it; the fastest of several runs counts.</p>\n",
      caches(budget), products(budget), blocks(budget), "<h3>On a GPU</h3>\n",
      measured_on_gpu({"block_sparse", "attention"}, budget));
}

std::vector<Exercise> exercises() {
  return {
      {"A product of two matrices of 16 rows and columns in tiles of 4: how many numbers are "
       "brought up?",
       {{"level", 0, {2}}},
       "answer = loads",
       {{"answer = loads / 2", "a tile of each of the two matrices comes up"},
        {"answer = 2 * n * n",
         "that is each number once; tiles come up again for each tile of the "
         "result"},
        {"answer = 2 * n * n * n", "this is without tiles, or with tiles of 1"}},
       "4 times 4 tiles of the result, 4 steps each, and two tiles of 16 numbers in a step"},
      {"And how many operations a byte are that, with numbers of four bytes?",
       {{"level", 0, {2}}},
       "answer = intensity",
       {{"answer = 4 * intensity", "a number has four bytes"},
        {"answer = intensity / 2", "a product and a sum are two operations"}},
       "2 n n n operations, over four times what exercise 1 gives"},
      {"A card makes 1000 million million operations a second on tensor cores, and its memory "
       "brings "
       "4 million million bytes. How many operations a byte must a program have, so that the "
       "memory "
       "is not its limit?",
       {},
       "answer = 1000 / 4",
       {{"answer = 4 / 1000", "this is the bytes for each operation"},
        {"answer = 1000 * 4", "divide: in a second it brings 4 and computes 1000"}},
       "how much is computed in the time in which one byte comes?"},
      {"Numbers have two bytes, and only the tile is kept on the chip. Which tile b has that many "
       "operations a byte? (A product makes 2 n n n operations and brings up 2 n n n / b numbers.)",
       {},
       "answer = 2 * 1000 / 4",
       {{"answer = 1000 / 4",
         "the operations a byte are b / 2 here, because a number has two bytes"},
        {"answer = 4 * 1000 / 4", "that is for numbers of four bytes"}},
       "operations a byte are b / 2; set that equal to the answer of exercise 3"},
      {"The second form with blocks of one token ($level = 0$): how many pairs are computed?",
       {},
       "answer = tile * tile * (T / tile) * (T / tile + 1) / 2",
       {{"answer = T * (T + 1) / 2", "tiles on the diagonal are computed whole"},
        {"answer = T * T", "tiles behind the diagonal hold nothing that is wanted"},
        {"answer = T * (T / 4 + 1) / 2", "this is about what is wanted; whole tiles are computed"}},
       "every tile on or before the diagonal holds a wanted pair; count tiles, times 16"}};
}

Lesson make() {
  Lesson l;
  l.name = "memory";
  l.title = "Memory, tiles, and blocks under 64";
  l.summary = "Why everything is done in tiles, and why smaller blocks save nothing.";
  l.first = {"attention", "block_sparse"};
  l.problem = kProblem;
  l.names = {{"b", "tile", "train/lessons/memory.cpp", "rows and columns of a tile of the product"},
             {"loads", "loads", "train/lessons/memory.cpp", "numbers copied to fast memory"},
             {"sees[a, c]", "strided_blocks", "kernels/block_sparse/patterns.h",
              "the mask of the second form"},
             {"wanted", "causal_pairs", "kernels/block_sparse/patterns.h",
              "pairs of a query and a key that it sees"}};
  l.constants = {{"n", 16}, {"level", 2}, {"T", 32}, {"tile", 4}, {"step", 4}};
  l.sliders = {{.label = "$level$: the tile, and the block, are 2 to this power",
                .name = "level",
                .low = 0,
                .high = 4,
                .step = 1}};
  l.forms = forms();
  l.experiments = experiments();
  l.measure = measure;
  l.exercises = exercises();
  return l;
}

const RegisteredLesson registered(80, make);

}  // namespace
}  // namespace weft::train
