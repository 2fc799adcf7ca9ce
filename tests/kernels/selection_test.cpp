// The choice of blocks: what a query sees, against the definition written out in fp64, and that no
// choice knows of the future, of other documents or of how a text is cut.
#include "kernels/selection/select_blocks.h"

#include <algorithm>
#include <cmath>

#include "core/device.h"
#include "core/random.h"
#include "kernels/contract/operation.h"
#include "kernels/selection/block_means.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "train/workbench/operation_file.h"

using namespace weft;
using namespace weft::kernels;
using Catch::Matchers::Contains;

namespace {

struct Sizes {
  int64_t B = 2, T = 37, H = 4, Hk = 2, K = 5;
};

Tensor means_of(const Tensor& x, const SelectBlocks& o) {
  BlockMeans::Options m;
  m.block = o.block;
  m.cu_seqlens = o.cu_seqlens;
  m.position = o.position;
  return forward<BlockMeans>({x}, m).y;
}

// Whole numbers, of which sums are exact in any order: equal on every device, ties included.
Tensor whole_numbers(const Shape& shape, const std::string& name, Dtype dtype = Dtype::f64) {
  const Tensor t = empty(shape, Dtype::f64);
  const Random random(3, stream_of(name));
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<double>()[i] = static_cast<double>(random.below(9, static_cast<uint64_t>(i))) - 4;
  return t.to(dtype);
}

std::vector<int64_t> borders_of(const SelectBlocks& o, int64_t T) {
  return o.cu_seqlens ? to_ints(o.cu_seqlens) : std::vector<int64_t>{0, T};
}

// The definition: sort the candidates of each query by score, then by number. q and k [B, T, ...];
// by_block: q are means of the queries already.
Tensor chosen(const Tensor& q_in, const Tensor& k_in, const SelectBlocks& o) {
  const View<const double> q = view<const double>(q_in), k = view<const double>(k_in);
  const int64_t B = k.size(0), T = k.size(1), H = q.size(2), group = H / k.size(2);
  const int64_t heads = o.heads > 0 ? o.heads : H, share = H / heads;
  const Tensor mask = zeros({B, heads, T, (T + o.block - 1) / o.block}, Dtype::u8);
  const std::vector<int64_t> borders = borders_of(o, T);
  for (size_t n = 0; n + 1 < borders.size(); ++n)
    for (int64_t b = 0; b < B; ++b)
      for (int64_t m = 0; m < heads; ++m)
        for (int64_t t = borders[n]; t < borders[n + 1]; ++t) {
          const int64_t start = borders[n], own = (t - start) / o.block;
          std::vector<std::pair<double, int64_t>> ranked;  // (-score, block)
          for (int64_t c = 0; c < own; ++c) {
            double score = 0;
            for (int64_t h = m * share; h < (m + 1) * share; ++h) {
              double dot = 0;
              for (int64_t i = 0; i < q.size(3); ++i) {
                double mean = 0;
                for (int64_t j = 0; j < o.block; ++j)
                  mean += k(b, start + c * o.block + j, h / group, i);
                const int64_t row = o.by_block ? start / o.block + own - 1 : t;
                dot += q(b, row, h, i) * mean / static_cast<double>(o.block);
              }
              score += o.lse ? std::exp(o.scale * dot - view<double>(o.lse)(b, h, t)) : dot;
            }
            const bool forced = c < o.first || own - c < o.recent;
            ranked.emplace_back(forced ? -INFINITY : -score, c);
          }
          ranked.emplace_back(-INFINITY, own);
          std::sort(ranked.begin(), ranked.end());
          const auto forced = static_cast<int64_t>(std::count_if(
              ranked.begin(), ranked.end(), [](auto& r) { return r.first == -INFINITY; }));
          const int64_t count =
              std::min<int64_t>(static_cast<int64_t>(ranked.size()), std::max(o.top_k, forced));
          for (int64_t i = 0; i < count; ++i)
            view<uint8_t>(mask)(b, m, t, ranked[static_cast<size_t>(i)].second) = 1;
        }
  return mask;
}

// Settings that meet every branch, on sizes of their own.
struct Choice {
  std::string name;
  Sizes sizes;
  SelectBlocks o;
};
std::vector<Choice> choices() {
  std::vector<Choice> list = {
      {"moba", {}, {.block = 4, .top_k = 3}},
      {"own block alone", {}, {.block = 4, .top_k = 1}},
      {"more than there are", {}, {.block = 8, .top_k = 9}},
      {"a mask a key head", {}, {.block = 3, .top_k = 4, .heads = 2}},
      {"first and recent", {}, {.block = 3, .top_k = 6, .first = 2, .recent = 3}},
      {"forced beyond top_k", {}, {.block = 3, .top_k = 2, .first = 2, .recent = 3}},
      {"by block", {}, {.block = 4, .top_k = 3, .by_block = true, .heads = 2}},
      {"blocks of one", {.T = 12}, {.block = 1, .top_k = 3}},
      {"one token", {.T = 1}, {.block = 4, .top_k = 3}},
      {"weights", {}, {.block = 4, .top_k = 3, .heads = 2, .scale = 0.3}},
      {"packed", {.B = 1, .T = 40}, {.block = 4, .top_k = 3}},
      {"packed by block", {.B = 1, .T = 40}, {.block = 4, .top_k = 2, .by_block = true}},
  };
  for (Choice& c : list) {
    if (c.name.starts_with("packed"))
      c.o.cu_seqlens = tensor_of<int32_t>({0, 1, 3, 20, 23, 40, 40});
    if (c.name == "weights") c.o.lse = normal({c.sizes.B, c.sizes.H, c.sizes.T}, 1, "lse");
  }
  return list;
}

struct Drawn {
  Tensor q, k;
};
Drawn drawn(const Choice& c) {
  const Sizes& s = c.sizes;
  Drawn d{whole_numbers({s.B, s.T, s.H, s.K}, "q"), whole_numbers({s.B, s.T, s.Hk, s.K}, "k")};
  if (c.o.by_block) d.q = means_of(d.q, c.o);
  return d;
}

Tensor select(const Drawn& d, const SelectBlocks& o) {
  return select_blocks(d.q, means_of(d.k, o), d.k.size(1), d.k.size(1), o);
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && to_ints(a.to(kCpu)) == to_ints(b.to(kCpu));
}

}  // namespace

TEST_CASE("selection: each query sees the blocks of the definition, ties by number") {
  for (const Choice& c : choices()) {
    INFO(c.name);
    const Drawn d = drawn(c);
    CHECK(equal(select(d, c.o), chosen(d.q, d.k, c.o)));
  }
}

TEST_CASE("selection: MoBA's published code sees the same blocks") {
  for (const char* file : {"moba", "moba_packed"}) {
    INFO(file);
    const Tensors in = train::read_operation_file(
                           tests::source_path(concat("tests/oracles/block_sparse_", file, ".h5")),
                           operation("block_sparse"))
                           .inputs;
    SelectBlocks o{.block = 4, .top_k = 3};
    if (in.count("cu_seqlens")) o.cu_seqlens = in.at("cu_seqlens");
    CHECK(equal(select({in.at("q"), in.at("k")}, o), in.at("block_mask")));
  }
}

TEST_CASE("selection: f32 and bf16 choose as f64 where sums are exact") {
  for (const Choice& c : choices()) {
    if (c.o.lse || c.o.block == 3 || c.o.by_block) continue;  // means that are no short fractions
    INFO(c.name);
    const Drawn d = drawn(c);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::bf16 && c.o.block > 1) continue;  // means are rounded
      CHECK(equal(select({d.q.to(dtype), d.k.to(dtype)}, c.o), select(d, c.o)));
    }
  }
}

TEST_CASE("selection: a planted block is chosen, and equal scores leave the lowest") {
  const SelectBlocks o{.block = 4, .top_k = 2};
  const Tensor q = full({1, 32, 1, 3}, 1, Dtype::f64), k = zeros({1, 32, 1, 3}, Dtype::f64);
  const Tensor even = select({q, k}, o);
  CHECK(view<uint8_t>(even)(0, 0, 31, 0) == 1);
  CHECK(view<uint8_t>(even)(0, 0, 31, 7) == 1);
  k.slice(1, 12, 16).fill(5);
  const Tensor planted = select({q, k}, o);
  CHECK(view<uint8_t>(planted)(0, 0, 31, 3) == 1);
  CHECK(view<uint8_t>(planted)(0, 0, 31, 0) == 0);
  CHECK(view<uint8_t>(planted)(0, 0, 15, 0) == 1);  // not complete before token 16
}

TEST_CASE("selection: no choice depends on a later token") {
  for (const Choice& c : choices()) {
    if (c.sizes.T < 30 || c.o.lse) continue;
    const Sizes& s = c.sizes;
    const auto mask = [&](int64_t kept) {  // of the tokens; the others are changed
      const Tensor q = whole_numbers({s.B, s.T, s.H, s.K}, "q");
      const Tensor k = whole_numbers({s.B, s.T, s.Hk, s.K}, "k");
      q.slice(1, kept, s.T).fill(7);
      k.slice(1, kept, s.T).fill(-3);
      return select({c.o.by_block ? means_of(q, c.o) : q, k}, c.o);
    };
    const Tensor before = mask(s.T);
    for (const int64_t t : {9, 16, 21}) {
      INFO(c.name << ", token " << t);
      CHECK(equal(mask(t).slice(2, 0, t), before.slice(2, 0, t)));
    }
  }
}

TEST_CASE("selection: a text that comes in parts, or into a cache, chooses as at once") {
  for (const Choice& c : choices()) {
    if (c.o.cu_seqlens || c.o.lse || c.sizes.T < 30) continue;
    INFO(c.name);
    const Sizes& s = c.sizes;
    const Tensor q = whole_numbers({1, s.T, s.H, s.K}, "q");
    const Tensor k = whole_numbers({1, s.T, s.Hk, s.K}, "k");
    const Tensor whole = select({c.o.by_block ? means_of(q, c.o) : q, k}, c.o);
    const Tensor cache = full({1, 50, s.Hk, s.K}, NAN, Dtype::f64),
                 queries = full({1, 50, s.H, s.K}, NAN, Dtype::f64);
    for (int64_t t = 0; t < s.T; ++t) {
      const Tensor now = k.slice(1, 0, t + 1);
      const Tensor row = q.slice(1, t, t + 1);
      const Tensor part = select_blocks(c.o.by_block ? means_of(q.slice(1, 0, t + 1), c.o) : row,
                                        means_of(now, c.o), 1, t + 1, c.o);
      CHECK(equal(part, whole.slice(2, t, t + 1).slice(3, 0, part.size(3))));
      cache.slice(1, t, t + 1).copy_from(k.slice(1, t, t + 1));
      queries.slice(1, t, t + 1).copy_from(row);
      SelectBlocks placed = c.o;
      placed.position = tensor_of<int32_t>({static_cast<int32_t>(t)});
      const Tensor in_cache = select_blocks(c.o.by_block ? means_of(queries, placed) : row,
                                            means_of(cache, placed), 1, 50, placed);
      CHECK(equal(in_cache.slice(3, 0, part.size(3)), part));
    }
  }
}

TEST_CASE("selection: packed documents choose as each by itself") {
  for (const Choice& c : choices()) {
    if (!c.o.cu_seqlens) continue;
    const Sizes& s = c.sizes;
    const Tensor q = whole_numbers({1, s.T, s.H, s.K}, "q");
    const Tensor k = whole_numbers({1, s.T, s.Hk, s.K}, "k");
    const Tensor packed = select({c.o.by_block ? means_of(q, c.o) : q, k}, c.o);
    const std::vector<int64_t> cu = to_ints(c.o.cu_seqlens);
    SelectBlocks alone = c.o;
    alone.cu_seqlens = {};
    for (size_t n = 0; n + 1 < cu.size() && cu[n] < s.T; ++n) {
      INFO(c.name << ", document " << n);
      const Tensor qn = q.slice(1, cu[n], cu[n + 1]), kn = k.slice(1, cu[n], cu[n + 1]);
      const Tensor one = select({alone.by_block ? means_of(qn, alone) : qn, kn}, alone);
      CHECK(equal(one, packed.slice(2, cu[n], cu[n + 1]).slice(3, 0, one.size(3))));
    }
  }
}

TEST_CASE("selection: the blocks before and the slots of the past are those of each document") {
  SelectBlocks o{.block = 4};
  o.cu_seqlens = tensor_of<int32_t>({0, 3, 16, 17, 26});
  const int64_t T = 26, H = 2;
  // Complete blocks: 3 .. 6, 7 .. 10, 11 .. 14 (slots 0, 1, 2) and 17 .. 20, 21 .. 24 (4, 5).
  const Tensor past = past_slots(T, T, o, kCpu);
  const BlocksBefore before = blocks_before(1, T, T, H, o, Dtype::f64, kCpu);
  const std::vector<std::pair<int64_t, int64_t>> slots = {
      {3, 0}, {7, 1}, {11, 2}, {17, 4}, {21, 5}};
  for (int64_t t = 0; t < T; ++t) {
    INFO("token " << t);
    const int64_t start = t < 3 ? 0 : t < 16 ? 3 : t < 17 ? 16 : 17;
    int64_t last = -1;  // the complete block that ends before the query's own begins
    for (const auto& [first, slot] : slots) {
      CHECK(view<uint8_t>(past)(0, 0, t, slot) == (first >= start && first + 3 <= t));
      if (first >= start && first + 4 <= t - (t - start) % 4) last = slot;
    }
    CHECK(view<uint8_t>(past)(0, 0, t, 3) == 0);
    for (int64_t h = 0; h < H; ++h) {
      CHECK(view<double>(before.there)(0, t, h) == (last >= 0 ? 1 : 0));
      if (last >= 0) CHECK(before.index.data<int32_t>()[t * H + h] == last * H + h);
    }
  }
  CHECK(to_ints(slot_borders(o.cu_seqlens, T, 4)) == std::vector<int64_t>{0, 4, 7, 7, 7, 7, 7, 7});
}

TEST_CASE("selection: a mask's memory is that of shapes, on the meta device too") {
  const SelectBlocks o{.block = 4, .top_k = 3};
  const auto peak = [&](Device device) {
    const Tensor q = full({2, 37, 4, 5}, 1, Dtype::f32, device);
    const Tensor means = full({2, 10, 2, 5}, 1, Dtype::f32, device);
    Allocator& a = allocator(device);
    const int64_t before = a.stats().current;
    a.reset_peak();
    select_blocks(q, means, 37, 37, o);
    return a.stats().peak - before;
  };
  CHECK(peak(kCpu) == peak(kMeta));
}

TEST_CASE("selection: sizes that do not go together are named") {
  const Tensor q = zeros({1, 9, 2, 3}, Dtype::f32), means = zeros({1, 3, 1, 3}, Dtype::f32);
  const auto message = [&](const Tensor& queries, SelectBlocks o) -> std::string {
    try {
      select_blocks(queries, means, 9, 9, o);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  CHECK_THAT(message(q, {.block = 2}), Contains("expected [B, 9, H, K] and [B, 5, Hk, K]"));
  CHECK_THAT(message(q, {.block = 3, .by_block = true}), Contains("expected [B, 3, H, K]"));
  CHECK_THAT(message(q, {.block = 0}), Contains("block 0"));
  CHECK_THAT(message(q, {.block = 3, .heads = 3}), Contains("a mask of 3 heads"));
  CHECK(message(q, {.block = 3}).empty());
}

Tensor sixteenths(const Tensor& t) {
  const Tensor out = empty(t.shape(), Dtype::f32);
  const std::vector<double> numbers = to_doubles(t);
  for (size_t i = 0; i < numbers.size(); ++i)
    out.data<float>()[i] = static_cast<float>(std::round(16 * numbers[i]) / 16);
  return out;
}

TEST_CASE("cuda selection: every choice is that of the CPU", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Choice& c : choices()) {
    INFO(c.name);
    const Drawn d = drawn(c);
    const int64_t T = d.k.size(1);
    SelectBlocks there = c.o;
    if (there.lse) there.lse = there.lse.to(Dtype::f32).to(kCuda);
    // Sixteenths: sums of their products are exact, so that the order of a sum breaks no tie.
    const Tensor q = sixteenths(d.q), means = sixteenths(means_of(d.k, c.o));
    SelectBlocks here = c.o;
    if (here.lse) here.lse = here.lse.to(Dtype::f32);
    CHECK(equal(select_blocks(q.to(kCuda), means.to(kCuda), T, T, there),
                select_blocks(q, means, T, T, here)));
    CHECK(equal(past_slots(T, T, c.o, kCuda), past_slots(T, T, c.o, kCpu)));
    const auto a = blocks_before(2, T, T, 3, c.o, Dtype::f32, kCuda);
    const auto b = blocks_before(2, T, T, 3, c.o, Dtype::f32, kCpu);
    CHECK(equal(a.index, b.index));
    CHECK(to_doubles(a.there.to(kCpu)) == to_doubles(b.there));
  }
}
