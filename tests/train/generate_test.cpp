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

namespace {

// The bytes of a generation's state as `inspect` plans them.
int64_t planned(const std::string& text) {
  const layers::Model m(toml_from_text(text, "r.toml"), 61, Dtype::f32, kMeta, 5);
  layers::Generation g;
  g.capacity = m.context();
  m.next(empty({1, 1}, Dtype::i32, kMeta), g);
  return g.bytes();
}

std::string windowed(const std::string& window, const std::string& more = "") {
  return "[model]\nwidth = 16\ncontext = 40\npattern = [\"attention\"]\n" + more +
         "[attention]\nheads = 2\nwindow = " + window + "\n";
}

}  // namespace

TEST_CASE("generate: a text of the context's length holds the bytes that were planned") {
  const layers::Model m = model_of(Dtype::f32, kCpu);
  CHECK(generate(m, {1, 2, 3}, m.context() - 3, {}).state_bytes == planned(recipe()));
}

TEST_CASE("generate: a window keeps no more keys than the text can have") {
  const std::vector<int32_t> prompt{1, 2, 3};
  const int64_t whole = planned(windowed("0"));
  CHECK(whole == 40 * 16 * 2 * 4);
  for (const char* window : {"20", "21", "40", "10000000", "9223372036854775807"}) {
    INFO(window);
    CHECK(planned(windowed(window)) == whole);
    const layers::Model m(toml_from_text(windowed(window), "r.toml"), 61, Dtype::f32, kCpu, 5);
    CHECK(generate(m, prompt, 37, {}).state_bytes == whole);
    CHECK(generate(m, prompt, 7, {}).state_bytes == 10 * 16 * 2 * 4);
  }
  CHECK(planned(windowed("7")) == 14 * 16 * 2 * 4);
}

TEST_CASE("generate: a window over the whole text writes what no window writes") {
  const std::vector<int32_t> prompt{1, 2, 3};
  const auto written = [&](const std::string& window) {
    const layers::Model m(toml_from_text(windowed(window), "r.toml"), 61, Dtype::f32, kCpu, 5);
    return generate(m, prompt, 60, {.seed = 4}).tokens;
  };
  CHECK(written("10000000") == written("0"));
  CHECK(written("63") == written("0"));
}

TEST_CASE("generate: learned positions refuse a text past them before the first token") {
  const layers::Model m(toml_from_text(windowed("0", "positions = \"learned\"\n"), "r.toml"), 61,
                        Dtype::f32, kCpu, 5);
  int64_t seen = 0;
  const auto count = [&](int32_t) { return ++seen > 0; };
  CHECK_THROWS_WITH(generate(m, {1, 2, 3}, 39, {}, count),
                    ContainsSubstring("learned") && ContainsSubstring("at most 38"));
  CHECK(seen == 0);
  CHECK(generate(m, {1, 2, 3}, 38, {}, count).tokens.size() == 38);
}
