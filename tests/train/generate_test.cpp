// Text from a model: the steps' two ways on a GPU. What the program says is in play_test.cpp.
#include "train/generate.h"

#include "core/toml.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

namespace {

std::string recipe() {
  std::string pattern;
  for (const std::string& name : layers::mixer_names()) pattern += "\"" + name + "\", ";
  return "[model]\nwidth = 32\ncontext = 200\npattern = [" + pattern +
         "\"window\"]\nmlp = [\"swiglu\", \"moe\"]\n"
         "[window]\ntype = \"attention\"\nheads = 2\nwindow = 9\n"
         "[attention]\nheads = 2\n[block_sparse]\nheads = 2\nblock = 8\n"
         "[moe]\nexperts = 4\ntop_k = 2\nwidth = 16\n[mamba2]\nhead_dim = 16\n";
}

layers::Model model_of(Dtype dtype, Device device) {
  return {toml_from_text(recipe(), "r.toml"), 61, dtype, device, 5};
}

}  // namespace

TEST_CASE("generate: stops when it is told to") {
  const layers::Model m = model_of(Dtype::f32, kCpu);
  int64_t left = 5;
  const Generated g = generate(m, {1, 2, 3}, 30, {}, [&](int32_t) { return --left > 0; });
  CHECK(g.tokens.size() == 5);
  CHECK(g.how.empty());
}

TEST_CASE("generate: a recorded step gives the tokens of one that is not, for every mixer",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const layers::Model m = model_of(dtype, kCuda);
    for (const SamplingSettings& s :
         {SamplingSettings{.temperature = 0}, SamplingSettings{.temperature = 2, .seed = 3}}) {
      const Generated one = generate(m, {1, 2, 3}, 150, s);
      const Generated other = generate(m, {1, 2, 3}, 150, s, nullptr, /*record=*/false);
      INFO(dtype << ": " << one.how);
      CHECK(one.how == "each token one CUDA graph");
      CHECK(one.tokens == other.tokens);
      CHECK(one.tokens.size() == 150);
      CHECK(one.state_bytes == other.state_bytes);
    }
    int64_t left = 5;
    CHECK(generate(m, {1}, 30, {}, [&](int32_t) { return --left > 0; }).tokens.size() == 5);
  }
}
