#include "kernels/contract/naive_memory.h"

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

kernels::Tensors attention(int64_t tokens) {
  kernels::Tensors x;
  for (const char* name : {"q", "k", "v"}) x[name] = zeros({1, tokens, 2, 64}, Dtype::f32);
  return x;
}

}  // namespace

TEST_CASE("naive_memory: the steps are those of the definition's loops") {
  kernels::Tensors x;
  x["x"] = zeros({7, 5}, Dtype::f64);
  x["w"] = zeros({3, 5}, Dtype::f64);
  CHECK(kernels::naive_steps("matmul", x, {}) == 7 * 5 + 3 * 5 + 2 * 7 * 5 * 3);
  // Pairs of a query and a key that it sees, over 100 tokens: all, half, a band, two documents.
  const auto pairs = [&](kernels::Settings settings, kernels::Tensors more = {}) {
    kernels::Tensors all = attention(100);
    all.merge(more);
    double inputs = 0;
    for (const auto& [name, t] : all) inputs += static_cast<double>(t.numel());
    return (kernels::naive_steps("attention", all, settings) - inputs) /
           (2 * (2 * 64 + 4 * 64 + 4));
  };
  CHECK(pairs({{"causal", "false"}}) == 100 * 100);
  CHECK(pairs({}) == 5050);
  CHECK(pairs({{"window", "2"}}) == 199);
  kernels::Tensors packed;
  packed["cu_seqlens"] = tensor_of<int32_t>({0, 40, 100});
  CHECK(pairs({}, packed) == 40 * 41 / 2 + 60 * 61 / 2);
}

TEST_CASE("naive_memory: a gradient that no machine holds is refused beforehand, with what to do") {
  const Folder f;
  {
    Hdf5Writer out(f / "in.h5");
    out.attribute("", "operation", std::string("attention"));
    for (const auto& [name, t] : attention(40000)) out.tensor(name, t);
    out.commit();
  }
  const Ran ran =
      run_weft(f, {"op", "attention", "in.h5", "out.h5", "--form", "naive", "--backward"});
  INFO(ran.text);
  CHECK(ran.status == 2);
  for (const char* part :
       {"attention: the gradient of the naive form keeps about ", "[1, 40000, 2, 64]",
        "--form chunkwise", "--form recurrent", "--dtype f64", "fewer tokens"})
    CHECK_THAT(ran.text, ContainsSubstring(part));
}
