// Block-sparse attention and its patterns: gradients by finite differences, and what holds of it
// and of nothing else. That the forms agree, on any threads and strides, is in forms_test.cpp.
#include "kernels/block_sparse/block_sparse.h"

#include <map>

#include "kernels/attention/attention.h"
#include "kernels/block_sparse/patterns.h"
#include "kernels/block_sparse/reference.h"
#include "tests/kernels/softmax_checks.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::softmax_checks;

namespace {

using Sizes = Reference<BlockSparse>::Sizes;
using Settled = BlockSparse::Options;

Inputs<BlockSparse> sample(const Sizes& sizes, Dtype dtype = Dtype::f64) {
  return as<BlockSparse>(dtype, Reference<BlockSparse>::sample("", sizes).x);
}

Settled masked(const Tensor& mask, int64_t block) {
  Settled o;
  o.block_mask = mask, o.block = block;
  return o;
}

Inputs<Attention> dense(const Inputs<BlockSparse>& x) { return {x.q, x.k, x.v, {}}; }
Outputs<Attention> dense(const Outputs<BlockSparse>& y) { return {y.o, y.lse}; }

// Rows, as text: "1011".
Tensor mask_of(const std::vector<std::string>& rows) {
  const auto n = static_cast<int64_t>(rows.size());
  const Tensor mask = zeros({1, n, n}, Dtype::u8);
  for (int64_t a = 0; a < n; ++a)
    for (int64_t c = 0; c < n; ++c)
      view<uint8_t>(mask)(0, a, c) = rows[static_cast<size_t>(a)][static_cast<size_t>(c)] == '1';
  return mask;
}

int64_t row_count(const Tensor& mask, int64_t h, int64_t a) {
  int64_t sum = 0;
  for (int64_t c = 0; c < mask.size(2); ++c) sum += view<uint8_t>(mask)(h, a, c);
  return sum;
}

bool causal(const Tensor& mask) {
  for (int64_t h = 0; h < mask.size(0); ++h)
    for (int64_t a = 0; a < mask.size(1); ++a)
      for (int64_t c = a + 1; c < mask.size(2); ++c)
        if (view<uint8_t>(mask)(h, a, c)) return false;
  return true;
}

// The first n rows and columns.
Tensor corner(const Tensor& mask, int64_t n) { return mask.slice(1, 0, n).slice(2, 0, n); }

}  // namespace

TEST_CASE("block_sparse: gradients are those of finite differences") {
  for (const NamedCase& c : operation("block_sparse").cases()) {
    if (c.name == "large scores") continue;  // too steep for differences
    INFO(c.name);
    check_finite_differences("block_sparse", c);
  }
}

TEST_CASE("block_sparse: a block beyond all tokens holds them all, up to the largest number") {
  const auto x = sample({.T = 70, .S = 130, .H = 2});
  for (const int64_t size : {1, 3}) {  // a mask may be larger than the sequence
    const Tensor mask = full({1, size, size}, 1, Dtype::u8);
    const auto one = run<BlockSparse>(x, masked(mask, 130));
    for (const int64_t block :
         {int64_t{1} << 31, int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
      INFO("block " << block);
      CHECK(block_count(130, block) == 1);
      check_same_bits<BlockSparse>(run<BlockSparse>(x, masked(mask, block)), one);
    }
  }
}

TEST_CASE("block_sparse: all blocks are attention, to the bit where a block is a tile") {
  for (const bool is_causal : {true, false})
    for (const int64_t block : {1, 8, 24, 64, 100, 200}) {
      INFO("block " << block);
      const auto x = sample({.T = 150, .H = 2});
      const auto dy = gradients_for<BlockSparse>(x);
      const int64_t n = block_count(150, block);
      Settled o = masked(full({1, n, n}, 1, Dtype::u8), block);
      o.causal = is_causal;
      Attention::Options all;
      all.causal = is_causal;
      const auto r = run<BlockSparse>(x, o, dy);
      const auto s = run<Attention>(dense(x), all, dense(dy));
      CHECK(difference(r.y.o, s.y.o) < 1e-14);
      CHECK(difference(r.y.lse, s.y.lse) < 1e-14);
      CHECK(difference(r.dx.q, s.dx.q) < 1e-13);
      CHECK(difference(r.dx.k, s.dx.k) < 1e-13);
      CHECK(difference(r.dx.v, s.dx.v) < 1e-13);
      if (block != 64) continue;
      CHECK(same_bits(r.y.o, s.y.o));
      CHECK(same_bits(r.dx.q, s.dx.q));
      CHECK(same_bits(r.dx.k, s.dx.k));
    }
}

TEST_CASE("block_sparse: the triangle of blocks is causal attention at every head size") {
  for (const int64_t K : {32, 64, 80, 96, 128}) {
    INFO("K = " << K);
    const auto x = sample({.T = 200, .K = K, .V = K}, Dtype::f32);
    const auto dy = gradients_for<BlockSparse>(x);
    const auto r = run<BlockSparse>(x, masked(window_blocks(4, 4), 64), dy);
    const auto s = run<Attention>(dense(x), {}, dense(dy));
    CHECK(difference(r.y.o, s.y.o) < 1e-5);
    CHECK(difference(r.dx.q, s.dx.q) < 1e-5);
    CHECK(difference(r.dx.k, s.dx.k) < 1e-5);
    CHECK(difference(r.dx.v, s.dx.v) < 1e-5);
  }
}

TEST_CASE("block_sparse: a window of blocks of one token is the sliding window") {
  for (const int64_t W : {1, 2, 7, 40, 90}) {
    INFO("W = " << W);
    const auto x = sample({.T = 75, .H = 2});
    const auto dy = gradients_for<BlockSparse>(x);
    Attention::Options window;
    window.window = W;
    const auto r = run<BlockSparse>(x, masked(window_blocks(75, W), 1), dy);
    const auto s = run<Attention>(dense(x), window, dense(dy));
    CHECK(difference(r.y.o, s.y.o) < 1e-14);
    CHECK(difference(r.y.lse, s.y.lse) < 1e-14);
    CHECK(difference(r.dx.v, s.dx.v) < 1e-13);
    if (W > 1) CHECK(difference(r.dx.q, s.dx.q) < 1e-13);
    if (W > 1) CHECK(difference(r.dx.k, s.dx.k) < 1e-13);
  }
}

TEST_CASE("block_sparse: a dilated window is a window on each class of tokens") {
  const int64_t T = 44, W = 4, step = 3;  // T is no multiple of the step
  const auto x = sample({.T = T});
  const auto y = forward<BlockSparse>(x, masked(dilated_blocks(T, W, step), 1));
  Attention::Options window;
  window.window = W;
  for (int64_t c = 0; c < step; ++c) {
    const int64_t n = (T - c + step - 1) / step;
    const auto one = [&](const Tensor& t) {
      return t.as_strided({1, n, 1, t.size(3)}, {0, step * t.size(3), t.size(3), 1}, c * t.size(3));
    };
    const auto z = forward<Attention>({one(x.q), one(x.k), one(x.v), {}}, window);
    CHECK(difference(one(y.o), z.o) < 1e-14);
  }
}

TEST_CASE("block_sparse: blocks that no row sees are never read, and have gradients of 0") {
  // An empty row, an empty column, a full row, and one with a single block.
  const Tensor mask = mask_of({"11011", "00000", "11011", "10010", "00001"});
  for (const bool is_causal : {true, false})
    for (const int64_t block : {16, 40}) {
      const int64_t T = 5 * block - 3, begin = 2 * block, end = 3 * block;
      auto x = sample({.T = T, .H = 4, .Hk = 2}, Dtype::f32);
      x.k.slice(1, begin, end).fill(NAN);
      x.v.slice(1, begin, end).fill(NAN);
      Settled o = masked(mask, block);
      o.causal = is_causal;
      const auto r = run<BlockSparse>(x, o);
      for (const Tensor& t : {r.y.o, r.dx.q, r.dx.k, r.dx.v}) CHECK(all_finite(t));
      CHECK(all_zero(r.dx.k.slice(1, begin, end)));
      CHECK(all_zero(r.dx.v.slice(1, begin, end)));
      // The rows of the empty row are dead.
      CHECK(all_zero(r.y.o.slice(1, block, 2 * block)));
      CHECK(all_zero(r.dx.q.slice(1, block, 2 * block)));
      for (const double l : to_doubles(r.y.lse.slice(2, block, 2 * block))) CHECK(l == -INFINITY);
      CHECK_FALSE(all_zero(r.dx.v.slice(1, 4 * block, T)));
    }
}

TEST_CASE("block_sparse: what a token holds changes nothing before it, to the bit") {
  for (const int64_t t : {1, 63, 64, 65, 129}) {
    const auto x = sample({.T = 150, .H = 2}, Dtype::f32);
    const Settled o = masked(bigbird_blocks(2, 10, 2, 1, 0), 16);
    const auto before = forward<BlockSparse>(x, o);
    for (const Tensor& changed : {x.q, x.k, x.v}) changed.select(1, t).fill(3);
    const auto after = forward<BlockSparse>(x, o);
    CHECK(same_bits(before.o.slice(1, 0, t), after.o.slice(1, 0, t)));
    CHECK(same_bits(before.lse.slice(2, 0, t), after.lse.slice(2, 0, t)));
    CHECK_FALSE(same_bits(before.o.slice(1, t, t + 1), after.o.slice(1, t, t + 1)));
  }
}

TEST_CASE("block_sparse: one document's numbers do not reach the others, to the bit") {
  const std::vector<int32_t> borders = {0, 1, 40, 41, 105, 170};
  for (const bool is_causal : {true, false})
    for (size_t n = 0; n + 1 < borders.size(); ++n) {
      INFO("document " << n);
      Settled o = masked(Reference<BlockSparse>::random_mask({4, 5, 5}, 0.7), 16);
      o.causal = is_causal;
      o.cu_seqlens = tensor_of<int32_t>(borders);
      const auto x = sample({.T = 170, .H = 4, .Hk = 2}, Dtype::f32);
      const auto dy = gradients_for<BlockSparse>(x);
      const auto before = run<BlockSparse>(x, o, dy);
      const int64_t begin = borders[n], end = borders[n + 1];
      for (const Tensor& t : {x.q, x.k, x.v, dy.o}) t.slice(1, begin, end).fill(7);
      const auto after = run<BlockSparse>(x, o, dy);
      const auto unchanged = [&](const Tensor& a, const Tensor& b, int dim) {
        const int64_t size = a.size(dim);
        return same_bits(a.slice(dim, 0, begin), b.slice(dim, 0, begin)) &&
               same_bits(a.slice(dim, end, size), b.slice(dim, end, size));
      };
      CHECK(unchanged(before.y.o, after.y.o, 1));
      CHECK(unchanged(before.y.lse, after.y.lse, 2));
      CHECK(unchanged(before.dx.q, after.dx.q, 1));
      CHECK(unchanged(before.dx.k, after.dx.k, 1));
      CHECK(unchanged(before.dx.v, after.dx.v, 1));
    }
}

TEST_CASE("block_sparse: a packed document sees the blocks that it sees alone") {
  const std::vector<int32_t> borders = {0, 3, 40, 41, 105, 170};
  Settled alone = masked(bigbird_blocks(2, 9, 2, 1, 0), 8);
  Settled o = alone;
  o.cu_seqlens = tensor_of<int32_t>(borders);
  const auto x = sample({.T = 170, .H = 2});
  const auto dy = gradients_for<BlockSparse>(x);
  const auto all = run<BlockSparse>(x, o, dy);
  for (size_t n = 0; n + 1 < borders.size(); ++n) {
    const auto part = [&](const Tensor& t, int dim = 1) {
      return t.slice(dim, borders[n], borders[n + 1]);
    };
    const auto one =
        run<BlockSparse>({part(x.q), part(x.k), part(x.v)}, alone, {part(dy.o), part(dy.lse, 2)});
    CHECK(difference(part(all.y.o), one.y.o) < 1e-14);
    CHECK(difference(part(all.y.lse, 2), one.y.lse) < 1e-14);
    CHECK(difference(part(all.dx.v), one.dx.v) < 1e-13);
    CHECK((part(x.q).size(1) == 1 || difference(part(all.dx.q), one.dx.q) < 1e-13));
    CHECK((part(x.q).size(1) == 1 || difference(part(all.dx.k), one.dx.k) < 1e-13));
  }
}

TEST_CASE("block_sparse: a decode step on a part of a cache gives the row of the whole") {
  const int64_t S = 150;
  const auto x = sample({.T = S, .H = 4, .Hk = 2, .K = 8}, Dtype::f32);
  const Settled o = masked(bigbird_blocks(4, 10, 1, 1, 0), 16);
  const auto whole = forward<BlockSparse>(x, o);
  for (const int64_t t : {0, 15, 16, 63, 64, 149}) {
    INFO("token " << t);
    const auto y = forward<BlockSparse>(
        {x.q.slice(1, t, t + 1), x.k.slice(1, 0, t + 1), x.v.slice(1, 0, t + 1)}, o);
    CHECK(difference(y.o, whole.o.slice(1, t, t + 1)) < 1e-5);
    CHECK(difference(y.lse, whole.lse.slice(2, t, t + 1)) < 1e-5);
  }
}

TEST_CASE("block_sparse: threads change no bit") {
  for (const int64_t heads : {1, 4}) {
    const auto x = sample({.T = 300, .H = heads, .Hk = 1, .K = 8, .V = 9}, Dtype::f32);
    const Settled o = masked(bigbird_blocks(heads, 10, 2, 1, 0), 32);
    const auto go = [&] { return run<BlockSparse>(x, o); };
    const auto one = with_threads(1, go);
    check_same_bits<BlockSparse>(with_threads(2, go), one);
    check_same_bits<BlockSparse>(with_threads(2, go), one);
  }
}

TEST_CASE("block_sparse: memory is linear in the length, forward and backward") {
  const auto bytes = [](int64_t T) {
    const auto x = sample({.T = T, .H = 2, .Hk = 1, .K = 8, .V = 8}, Dtype::f32);
    const auto dy = gradients_for<BlockSparse>(x);
    const Settled o = masked(bigbird_blocks(2, T / 64, 3, 1, 0), 64);
    return peak_of([&] { run<BlockSparse>(x, o, dy); });
  };
  CHECK(bytes(4096) < 2.1 * static_cast<double>(bytes(2048)));
}

TEST_CASE("block_sparse: a mask that does not cover the tokens is named") {
  using Message = std::string;
  const auto message = [](const Inputs<BlockSparse>& x, const Settled& o) -> Message {
    try {
      forward<BlockSparse>(x, o);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  const auto x = sample({.T = 33, .H = 4, .Hk = 2});
  CHECK_THAT(message(x, {}), ContainsSubstring("block_mask [1 or H, rows, columns] is missing"));
  CHECK_THAT(message(x, masked(window_blocks(4, 1), 8)),
             ContainsSubstring("[1, 4, 4], expected [1 or 4, 5, 5] or more for 33 tokens"));
  CHECK_THAT(message(x, masked(bigbird_blocks(3, 5, 1, 1, 0), 8)),
             ContainsSubstring("expected [1 or 4, 5, 5]"));
  CHECK_THAT(message(x, masked(zeros({1, 5, 5}, Dtype::i32), 8)), ContainsSubstring("expected u8"));
  CHECK_THAT(message(x, masked(window_blocks(5, 1), 0)), ContainsSubstring("block is 0"));
  CHECK_THAT(message(x, masked(full({2, 1, 5, 5}, 1, Dtype::u8), 8)),
             ContainsSubstring("a batch of 1 or of 1 as q"));
  Settled by_token = masked(full({1, 32, 5}, 1, Dtype::u8), 8);
  by_token.by_token = true;
  CHECK_THAT(message(x, by_token), ContainsSubstring("its rows are those of q, 33"));
  CHECK_THAT(message(sample({.T = 6, .S = 4}), masked(window_blocks(1, 1), 8)),
             ContainsSubstring("q has 6 tokens and k 4"));
}

TEST_CASE("block_sparse: a row of the batch, or a document, with its own mask is as by itself") {
  const int64_t H = 4, block = 8, n = 5;
  const Tensor masks = Reference<BlockSparse>::random_mask({3, 2, n, n}, 0.5);
  const auto x = sample({.B = 3, .T = 37, .H = H, .Hk = 2});
  const auto dy = gradients_for<BlockSparse>(x);
  const auto all = run<BlockSparse>(x, masked(masks, block), dy);
  // The same three texts packed into one row.
  const auto joined = [](const Tensor& t) {
    return t.reshape({1, t.size(0) * t.size(1), t.size(2), t.size(3)});
  };
  Settled packed = masked(masks, block);
  packed.cu_seqlens = tensor_of<int32_t>({0, 37, 74, 111});
  Outputs<BlockSparse> dpacked{joined(dy.o),
                               dy.lse.transpose(0, 1).contiguous().reshape({1, H, 3 * 37})};
  const auto one = run<BlockSparse>({joined(x.q), joined(x.k), joined(x.v)}, packed, dpacked);
  CHECK(difference(one.y.o, joined(all.y.o)) < 1e-14);
  CHECK(difference(one.dx.k, joined(all.dx.k)) < 1e-13);
  for (int64_t b = 0; b < 3; ++b) {
    const auto row = [&](const Tensor& t) { return t.slice(0, b, b + 1); };
    const auto alone =
        run<BlockSparse>({row(x.q), row(x.k), row(x.v)}, masked(masks.select(0, b), block),
                         {row(dy.o), row(dy.lse)});
    CHECK(same_bits(alone.y.o, row(all.y.o)));
    CHECK(same_bits(alone.dx.q, row(all.dx.q)));
    CHECK(same_bits(alone.dx.k, row(all.dx.k)));
    CHECK(same_bits(alone.dx.v, row(all.dx.v)));
  }
}

TEST_CASE("block_sparse: a mask by token that repeats a mask of blocks is that mask") {
  const int64_t T = 150, S = 170;
  for (const int64_t block : {8, 64}) {
    const auto x = sample({.B = 2, .T = T, .S = S, .H = 2}, Dtype::f32);
    const Tensor mask = bigbird_blocks(2, block_count(S, block), 1, 1, 0);
    const Tensor rows = empty({2, T, mask.size(2)}, Dtype::u8);
    for (int64_t t = 0; t < T; ++t)
      rows.select(1, t).copy_from(mask.select(1, (t + S - T) / block));
    Settled by_token = masked(rows, block);
    by_token.by_token = true;
    const auto dy = gradients_for<BlockSparse>(x);
    const auto a = run<BlockSparse>(x, masked(mask, block), dy);
    const auto b = run<BlockSparse>(x, by_token, dy);
    CHECK(difference(b.y.o, a.y.o) < 1e-6);
    CHECK(difference(b.dx.q, a.dx.q) < 1e-6);
    CHECK(difference(b.dx.k, a.dx.k) < 1e-6);
    CHECK(difference(b.dx.v, a.dx.v) < 1e-6);
    by_token.alike = block;  // the same tiles, and so the same bits
    CHECK(same_bits(run<BlockSparse>(x, by_token, dy).y.o, a.y.o));
  }
}

TEST_CASE("block_sparse: rows of the mask that are said to be alike, and are not, are named") {
  const auto x = sample({.T = 20}, Dtype::f32);
  Settled o = masked(full({1, 20, 3}, 1, Dtype::u8), 8);
  o.by_token = true;
  o.alike = 4;
  run<BlockSparse>(x, o);
  for (const int64_t row : {13, 14, 15, 19}) {  // the last of a group too, and of the mask
    view<uint8_t>(o.block_mask)(0, row, 0) = 0;
    CHECK_THROWS_WITH(
        run<BlockSparse>(x, o),
        ContainsSubstring(concat("rows ", row / 4 * 4, " and ", row, " of block_mask differ")));
    view<uint8_t>(o.block_mask)(0, row, 0) = 1;
  }
}

TEST_CASE("block_sparse: keys that no token chose are never read") {
  auto x = sample({.T = 70, .H = 2}, Dtype::f32);
  Settled o = masked(full({1, 70, 9}, 1, Dtype::u8), 8);
  o.by_token = true;
  for (int64_t t = 0; t < 70; ++t) view<uint8_t>(o.block_mask)(0, t, 2) = 0;
  x.k.slice(1, 16, 24).fill(NAN);
  x.v.slice(1, 16, 24).fill(NAN);
  const auto r = run<BlockSparse>(x, o);
  for (const Tensor& t : {r.y.o, r.dx.q, r.dx.k, r.dx.v}) CHECK(all_finite(t));
  CHECK(all_zero(r.dx.k.slice(1, 16, 24)));
}

TEST_CASE("patterns: each row draws its random blocks anew") {
  constexpr int64_t n = 64;
  const Tensor nothing = zeros({1, n, n}, Dtype::u8);
  const Tensor mask = random_blocks(nothing, 1, 1, 3, 0);
  const View<uint8_t> m = view<uint8_t>(mask);
  // Where in its row each of the later rows has its block, in eighths.
  std::map<int64_t, int> eighths;
  for (int64_t a = n / 2; a < n; ++a)
    for (int64_t c = 0; c <= a; ++c)
      if (m(0, a, c)) ++eighths[8 * c / (a + 1)];
  CHECK(eighths.size() >= 6);
}

TEST_CASE("patterns: all are causal, and a longer sequence keeps the rows it has") {
  const auto check = [](const auto& make) {
    const Tensor small = make(13), large = make(29);
    CHECK(causal(large));
    CHECK(same_bits(corner(large, 13), small));
  };
  check([](int64_t n) { return window_blocks(n, 3); });
  check([](int64_t n) { return dilated_blocks(n, 3, 4); });
  check([](int64_t n) { return strided_blocks(n, 5); });
  check([](int64_t n) { return global_blocks(n, 2); });
  check([](int64_t n) { return longformer_blocks(n, 3, 2); });
  check([](int64_t n) { return bigbird_blocks(3, n, 2, 7, 1); });
  check([](int64_t n) { return random_blocks(window_blocks(n, 2), 3, 2, 7, 1); });
}

TEST_CASE("patterns: each row holds the blocks of its definition") {
  CHECK(same_bits(window_blocks(4, 2), mask_of({"1000", "1100", "0110", "0011"})));
  CHECK(same_bits(dilated_blocks(5, 2, 2), mask_of({"10000", "01000", "10100", "01010", "00101"})));
  CHECK(same_bits(strided_blocks(5, 2), mask_of({"10000", "01000", "10100", "01010", "10101"})));
  CHECK(same_bits(global_blocks(4, 2), mask_of({"1000", "1100", "1100", "1100"})));
  CHECK(same_bits(longformer_blocks(4, 1, 1), mask_of({"1000", "1100", "1010", "1001"})));
  CHECK(same_bits(longformer_blocks(9, 3, 0), window_blocks(9, 3)));
  CHECK(same_bits(longformer_blocks(9, 3, 9), window_blocks(9, 9)));
  CHECK(blocks_of_window(512, 64) == 9);
  CHECK(blocks_of_window(513, 64) == 9);
  CHECK(blocks_of_window(514, 64) == 10);
  CHECK(blocks_of_window(1, 64) == 1);
}

TEST_CASE(
    "patterns: random blocks are as many as asked, none taken, and differ by head and layer") {
  const int64_t n = 40;
  const Tensor taken = longformer_blocks(n, 3, 1);
  const Tensor drawn = random_blocks(taken, 2, 3, 7, 0);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t a = 0; a < n; ++a) {
      const int64_t free = a + 1 - row_count(taken, 0, a);
      CHECK(row_count(drawn, h, a) == std::min<int64_t>(3, free));
      for (int64_t c = 0; c < n; ++c)
        CHECK(!(view<uint8_t>(taken)(0, a, c) && view<uint8_t>(drawn)(h, a, c)));
    }
  CHECK(same_bits(drawn, random_blocks(taken, 2, 3, 7, 0)));
  CHECK_FALSE(same_bits(drawn, random_blocks(taken, 2, 3, 8, 0)));
  CHECK_FALSE(same_bits(drawn, random_blocks(taken, 2, 3, 7, 1)));
  CHECK_FALSE(same_bits(drawn.select(0, 0), drawn.select(0, 1)));
  // A head draws the same blocks however many heads there are.
  CHECK(same_bits(random_blocks(taken, 1, 3, 7, 0).select(0, 0), drawn.select(0, 0)));
}

TEST_CASE("patterns: BigBird's rows hold 4 + r blocks, and its pairs are those of the formula") {
  const int64_t n = 20, r = 3, b = 16;
  const Tensor mask = bigbird_blocks(2, n, r, 1, 0);
  double expected = 0;
  for (int64_t a = 0; a < n; ++a) {
    const int64_t count = std::min(a + 1, 4 + r);
    for (int64_t h = 0; h < 2; ++h) CHECK(row_count(mask, h, a) == count);
    expected += (static_cast<double>(count) - 0.5) * b * b;
  }
  CHECK(causal_pairs(mask, 1, b, n * b) == expected + n * b / 2.0);
  // And a window's, token by token.
  const int64_t T = 70, W = 9;
  CHECK(causal_pairs(window_blocks(T, W), 0, 1, T) == W * T - W * (W - 1) / 2);
}

TEST_CASE("patterns: a window and a stride reach all of the past in two steps") {
  const int64_t n = 40, l = 6;
  const Tensor window = window_blocks(n, l), stride = strided_blocks(n, l);
  for (int64_t a = 0; a < n; ++a)
    for (int64_t c = 0; c <= a; ++c) {
      bool reached = false;
      for (int64_t m = c; m <= a; ++m)
        reached = reached || (view<uint8_t>(window)(0, a, m) && view<uint8_t>(stride)(0, m, c));
      CHECK(reached);
    }
}

TEST_CASE("patterns: a union serves masks of one head to all heads") {
  const Tensor all = united({global_blocks(12, 1), bigbird_blocks(3, 12, 1, 1, 0)});
  CHECK(all.shape() == Shape{3, 12, 12});
  CHECK(same_bits(all, bigbird_blocks(3, 12, 1, 1, 0)));
  CHECK_THROWS_WITH(united({bigbird_blocks(2, 9, 1, 1, 0), bigbird_blocks(3, 9, 1, 1, 0)}),
                    ContainsSubstring("masks of 2 and of 3 heads"));
}
