// What somebody does not see may be NaN: a packed neighbour, keys outside of a window or an unset
// block, the unused rows of a cache. Each test compares with zeros in the same places, bit for bit.
#include <algorithm>
#include <cmath>

#include "kernels/contract/agreement.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

// The dimension of a field that counts tokens (T, or S, which is T in packed rows), or documents.
int dimension(const Field& f, const std::vector<std::string>& letters) {
  const std::vector<std::string> shape = letters_of(f.shape);
  for (size_t i = 0; i < shape.size(); ++i)
    if (std::find(letters.begin(), letters.end(), shape[i]) != letters.end())
      return static_cast<int>(i);
  return -1;
}
const std::vector<std::string> kTokens{"T", "S"}, kDocuments{"N"};

void put(const Tensor& t, int dim, int64_t from, int64_t to, double value) {
  if (from < to) t.slice(dim, from, to).fill(value);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = to_doubles(a), y = to_doubles(b);
  return std::equal(x.begin(), x.end(), y.begin(), [](double u, double v) { return u == v; });
}
// But for [from, to) of one dimension.
bool same_outside(const Tensor& a, const Tensor& b, int dim, int64_t from, int64_t to) {
  return same_bits(a.slice(dim, 0, from), b.slice(dim, 0, from)) &&
         same_bits(a.slice(dim, to, a.size(dim)), b.slice(dim, to, b.size(dim)));
}

struct Results {
  Tensors y, dx;
};
Results run(const Operation& op, Device device, const Tensors& in, const Settings& settings,
            const Tensors& dy) {
  const Tensors there = on_device(device, in);
  return {op.forward(Form::chunkwise, there, settings),
          op.backward(Form::chunkwise, there, settings, on_device(device, dy))};
}

Tensors copies(const Tensors& in) {
  Tensors out;
  for (const auto& [name, t] : in) out[name] = t.contiguous().clone();
  return out;
}

// Of a packed call: document n with `value` in all that is its own, gradients of its outputs too.
Results with_document(const Operation& op, Device device, const Expected& e, int64_t n,
                      double value) {
  const std::vector<int64_t> cu = to_ints(e.inputs.at("cu_seqlens"));
  const auto at = [&](int64_t i) { return cu[static_cast<size_t>(i)]; };
  const auto fill = [&](const Tensors& tensors, const std::vector<Field>& fields, bool gradients) {
    for (const Field& f : fields) {
      const auto found = tensors.find(gradients ? gradient_name(f.name) : f.name);
      if (found == tensors.end()) continue;
      if (const int d = dimension(f, kTokens); d >= 0)
        put(found->second, d, at(n), at(n + 1), value);
      if (const int d = dimension(f, kDocuments); d >= 0) put(found->second, d, n, n + 1, value);
    }
  };
  const Tensors in = copies(e.inputs), dy = copies(e.output_gradients);
  fill(in, op.inputs(), false);
  fill(dy, op.outputs(), true);
  return run(op, device, in, e.settings, dy);
}

void check_neighbours(const Operation& op, const NamedCase& c, Device device, Dtype dtype) {
  INFO(op.name() << ", " << c.name << ", " << dtype << " on " << device);
  const Expected e = expected_of(op, c, dtype, Form::chunkwise);
  const std::vector<int64_t> cu = to_ints(c.inputs.at("cu_seqlens"));
  for (int64_t n = 0; n + 1 < static_cast<int64_t>(cu.size()); ++n) {
    INFO("document " << n);
    const int64_t from = cu[static_cast<size_t>(n)], to = cu[static_cast<size_t>(n) + 1];
    const Results zeros = with_document(op, device, e, n, 0);
    for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      const Results got = with_document(op, device, e, n, value);
      const auto check = [&](const Tensors& a, const Tensors& b, const std::vector<Field>& fields,
                             bool gradients) {
        for (const Field& f : fields) {
          const std::string name = gradients ? gradient_name(f.name) : f.name;
          if (a.count(name) == 0) continue;
          INFO(name);
          if (const int d = dimension(f, kTokens); d >= 0)
            CHECK(same_outside(a.at(name), b.at(name), d, from, to));
          if (const int d = dimension(f, kDocuments); d >= 0)
            CHECK(same_outside(a.at(name), b.at(name), d, n, n + 1));
        }
      };
      check(got.y, zeros.y, op.outputs(), false);
      check(got.dx, zeros.dx, op.inputs(), true);
    }
  }
}

void check_neighbours(Device device, Dtype dtype) {
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases())
      if (c.inputs.count("cu_seqlens")) check_neighbours(*op, c, device, dtype);
}

// --- Softmax attention at sizes of tiles ---------------------------------------------------------

struct Shape3 {
  int64_t T = 1, S = 1, K = 64, key_heads = 1;
};
NamedCase attention_case(const Shape3& s, Settings settings) {
  NamedCase c{"", {}, std::move(settings)};
  c.inputs["q"] = normal({1, s.T, 2 * s.key_heads, s.K}, 1, "q");
  c.inputs["k"] = normal({1, s.S, s.key_heads, s.K}, 1, "k");
  c.inputs["v"] = normal({1, s.S, s.key_heads, s.K}, 1, "v");
  return c;
}

// k and v are NaN, or infinite, at the keys that nobody may see; their gradients there are zero.
void check_unseen(const Operation& op, const NamedCase& c, const std::vector<int64_t>& unseen,
                  Device device, Dtype dtype, bool backward = true) {
  INFO(op.name() << ", " << dtype << " on " << device << ", K = " << c.inputs.at("q").size(3));
  const Tensors in = rounded_to(dtype, c.inputs, op.inputs());
  Tensors dy;
  const auto go = [&](double value) {
    const Tensors there = copies(in);
    for (const char* name : {"k", "v"})
      for (const int64_t j : unseen) put(there.at(name), 1, j, j + 1, value);
    if (!backward)
      return Results{op.forward(Form::chunkwise, on_device(device, there), c.settings), {}};
    if (dy.empty())
      dy = rounded_to(dtype, random_gradients(op.forward(Form::chunkwise, in, c.settings), 3),
                      op.outputs());
    return run(op, device, there, c.settings, dy);
  };
  const Results zeros = go(0);
  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    const Results got = go(value);
    for (const auto& [name, t] : zeros.y) {
      INFO(name);
      CHECK(same_bits(got.y.at(name), t));
    }
    for (const auto& [name, t] : zeros.dx) {
      INFO(name);
      CHECK(same_bits(got.dx.at(name), t));
    }
  }
}

std::vector<int64_t> range(int64_t from, int64_t to) {
  std::vector<int64_t> list;
  for (int64_t i = from; i < to; ++i) list.push_back(i);
  return list;
}

void check_unseen(Device device, Dtype dtype) {
  const Operation &attention = operation("attention"), &sparse = operation("block_sparse");
  for (const int64_t K : {64, 128, 24, 200}) {
    // Keys before the window of the first query.
    const NamedCase windowed = attention_case({100, 300, K}, {{"window", "50"}});
    check_unseen(attention, windowed, range(0, 151), device, dtype);
    const NamedCase two_sided =
        attention_case({70, 300, K}, {{"window", "20"}, {"causal", "false"}});
    check_unseen(attention, two_sided, range(0, 211), device, dtype);
    // More tiles, of rows and of keys, than a GPU has multiprocessors.
    const NamedCase many = attention_case({130, 200, K, 80}, {{"window", "50"}});
    check_unseen(attention, many, range(0, 21), device, dtype);
    const NamedCase one = attention_case({1, 2050, K}, {{"window", "700"}});
    check_unseen(attention, one, range(0, 1350), device, dtype);

    // Blocks that no query sees: column 1 of 5, and all beyond the third.
    NamedCase blocks = attention_case({200, 200, K}, {{"block", "40"}});
    Tensor mask = blocks.inputs["block_mask"] = full({1, 5, 5}, 1, Dtype::u8);
    for (int64_t row = 0; row < 5; ++row)
      for (const int64_t column : {1, 3, 4}) mask.data<uint8_t>()[row * 5 + column] = 0;
    std::vector<int64_t> unseen = range(40, 80);
    for (const int64_t j : range(120, 200)) unseen.push_back(j);
    check_unseen(sparse, blocks, unseen, device, dtype);
    blocks.settings["causal"] = "false";
    check_unseen(sparse, blocks, unseen, device, dtype);
  }
}

// The rows of a cache behind the only query.
void check_caches(Device device, Dtype dtype) {
  for (const int64_t position : {0, 63, 100, 2000}) {
    NamedCase ring = attention_case({1, 2100, 64}, {});
    ring.inputs["position"] = tensor_of<int32_t>({static_cast<int32_t>(position)}).to(device);
    check_unseen(operation("attention"), ring, range(position + 1, 2100), device, dtype, false);
    ring.inputs["block_mask"] = full({1, 21, 21}, 1, Dtype::u8);
    ring.settings["block"] = "100";
    check_unseen(operation("block_sparse"), ring, range(position + 1, 2100), device, dtype, false);
  }
}

// Packed rows at the sizes of tiles, where a tile holds several documents.
void check_packed_tiles(Device device, Dtype dtype) {
  for (const char* name : {"attention", "block_sparse", "delta", "kda", "linear", "gated_linear"}) {
    const Operation& op = operation(name);
    for (const int64_t K : {64, 128}) {
      NamedCase c = attention_case({330, 330, K}, {});
      c.inputs["cu_seqlens"] = tensor_of<int32_t>({0, 5, 70, 128, 131, 290, 330});
      if (c.name = name; c.name == "block_sparse") {
        c.inputs["block_mask"] = full({1, 6, 6}, 1, Dtype::u8);
        for (int64_t i = 1; i < 6; ++i) c.inputs["block_mask"].data<uint8_t>()[i * 6] = 0;
      }
      if (c.name != "attention" && c.name != "block_sparse") {
        c.inputs["v"] = normal({1, 330, 2, K}, 1, "v");
        for (const char* unit : {"q", "k"}) {
          const Tensor& t = c.inputs.at(unit);
          for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] /= std::sqrt(K);
        }
        c.inputs["q"] = c.inputs.at("q").slice(2, 0, 1).contiguous();
        if (c.name == "delta" || c.name == "kda")
          c.inputs["beta"] = full({1, 330, 2}, 0.5, Dtype::f64);
        c.inputs["g"] = c.name == "kda" || c.name == "gated_linear"
                            ? full({1, 330, 2, K}, -0.1, Dtype::f64)
                            : full({1, 330, 2}, -0.1, Dtype::f64);
      }
      check_neighbours(op, c, device, dtype);
    }
  }
}

}  // namespace

TEST_CASE("strangers: a packed neighbour that is NaN or infinite reaches nobody") {
  check_neighbours(kCpu, Dtype::f64);
  check_neighbours(kCpu, Dtype::f32);
}

TEST_CASE("cuda strangers: a packed neighbour that is NaN or infinite reaches nobody", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    check_neighbours(kCuda, dtype);
    check_packed_tiles(kCuda, dtype);
  }
}

TEST_CASE("strangers: keys that no query sees may be NaN, forward and backward") {
  check_unseen(kCpu, Dtype::f32);
}

TEST_CASE("cuda strangers: keys that no query sees may be NaN, forward and backward", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) check_unseen(kCuda, dtype);
}

TEST_CASE("strangers: the unused rows of a cache may be NaN") { check_caches(kCpu, Dtype::f32); }

TEST_CASE("cuda strangers: the unused rows of a cache may be NaN", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) check_caches(kCuda, dtype);
}
