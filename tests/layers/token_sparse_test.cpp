// Patterns that are exact to the token: which pairs are seen, whatever way they are computed.
#include <set>

#include "layers/mixing.h"
#include "layers/routes.h"
#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/message.h"

using namespace weft;
using namespace weft::layers;

namespace {

using Sees = std::function<bool(int64_t i, int64_t j)>;

// What attention of the same projections gives over the pairs that `sees` names, by the matrix that
// the layer's own picture has.
Tensor matrix_of(const Made& m, const Tensor& x) {
  Tensor found;
  const autograd::NoGrad no_grad;
  watch_mixings([&] { run(*m.layer, Var(x)); }, [&](const Mixing& mix) { found = mix.matrix; });
  return found;
}

void check_seen(const std::string& toml, const Sees& sees) {
  INFO(toml);
  const Made m = made({"", "token_sparse", toml});
  const int64_t T = 41;
  const Tensor matrix = matrix_of(m, sample({1, T, 12}, "x"));
  const auto M = view<const double>(matrix);
  for (int64_t h = 0; h < M.size(0); ++h)
    for (int64_t i = 0; i < T; ++i)
      for (int64_t j = 0; j < T; ++j) REQUIRE((M(h, i, j) > 0) == (j <= i && sees(i, j)));
}

// The numbers by classes, lists and documents are those of the picture's masks.
void check_ways(const std::string& toml) {
  INFO(toml);
  const Made m = made({"", "token_sparse", toml});
  const Tensor x = sample({1, 41, 12}, "x");
  const autograd::NoGrad no_grad;
  Tensor pictured;
  watch_mixings([&] { pictured = run(*m.layer, Var(x)).value(); }, [](const Mixing&) {});
  CHECK(distance(run(*m.layer, x).value(), pictured) < 1e-12);
  CHECK(distance(run(*m.layer, x, tensor_of<int32_t>({0, 41})).value(), pictured) < 1e-12);
}

}  // namespace

TEST_CASE("token_sparse: dilated and strided heads see what their names say, to the token") {
  check_seen("heads = 2\nwindow = 4\nstride = 3",
             [](int64_t i, int64_t j) { return (i - j) % 3 == 0 && (i - j) / 3 < 4; });
  check_seen("heads = 2\nwindow = 4\nstride = 1", [](int64_t i, int64_t j) { return i - j < 4; });
  check_seen("heads = 2\npattern = \"strided\"\nstride = 7",
             [](int64_t i, int64_t j) { return (i - j) % 7 == 0; });
  check_seen("heads = 2\nwindow = 4\nstride = 3\nglobal_tokens = 2",
             [](int64_t i, int64_t j) { return j < 2 || ((i - j) % 3 == 0 && (i - j) / 3 < 4); });
}

TEST_CASE("token_sparse: who counts the choices of several texts changes no number of them") {
  const Made m = made({"", "token_sparse", "heads = 2\nwindow = 4\nstride = 3\nglobal_tokens = 1"});
  const Tensor x = sample({2, 41, 12}, "x");
  const autograd::NoGrad no_grad;
  Tensor watched;
  watch_routes([&] { watched = run(*m.layer, x).value(); });
  CHECK(to_doubles(watched) == to_doubles(run(*m.layer, x).value()));
}

TEST_CASE("token_sparse: classes, lists and documents give what a mask of all pairs gives") {
  check_ways("heads = 2\nwindow = 4\nstride = 3");
  check_ways("heads = 2\nwindow = 4\nstride = 3\nglobal_tokens = 5");
  check_ways("heads = 2\nwindow = 2\nstride = 1\nglobal_tokens = 3\nglobal_projections = true");
  check_ways("heads = 2\npattern = \"strided\"\nstride = 7\nglobal_tokens = 1");
  check_ways("heads = 2\npattern = \"random\"\nrandom_tokens = 6");
}

TEST_CASE(
    "token_sparse: random tokens are drawn by seed, layer, head and position, without repeat") {
  const auto seen = [](const std::string& more, int64_t layer, int64_t T) {
    const Made m = made({"", "token_sparse",
                         "heads = 2\npattern = \"random\"\nrandom_tokens = 5\n" + more, 12, layer});
    const Tensor matrix = matrix_of(m, sample({1, T, 12}, "x"));
    const auto M = view<const double>(matrix);
    std::vector<std::set<int64_t>> lists;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 30; ++i) {
        lists.emplace_back();
        for (int64_t j = 0; j < T; ++j)
          if (M(h, i, j) > 0) lists.back().insert(j);
        CHECK(static_cast<int64_t>(lists.back().size()) == std::min<int64_t>(i + 1, 6));
        CHECK(lists.back().count(i) == 1);
        CHECK(*lists.back().rbegin() == i);
      }
    return lists;
  };
  const auto lists = seen("", 0, 30);
  CHECK(seen("", 0, 50) == lists);
  CHECK(seen("", 1, 30) != lists);
  CHECK(seen("pattern_seed = 2", 0, 30) != lists);
  CHECK(std::vector(lists.begin(), lists.begin() + 30) !=
        std::vector(lists.begin() + 30, lists.end()));
}

TEST_CASE("token_sparse: a dilated window's work and state are those of what it sees") {
  const auto flops = [](const std::string& toml, int64_t T) {
    return made({"", "token_sparse", toml}, Dtype::f32, kMeta).layer->flops_per_token(T);
  };
  const std::string window = "heads = 2\nwindow = 8\nstride = 4";
  CHECK(flops(window, 4000) < 1.01 * flops(window, 2000));
  CHECK(flops("heads = 2\npattern = \"strided\"\nstride = 50", 2000) <
        0.025 * flops("heads = 2\npattern = \"strided\"\nstride = 1", 2000));
  // Memory of a step grows as the text does, not as its square.
  const auto peak = [&](int64_t T) {
    const Made m = made({"", "token_sparse", window}, Dtype::f32, kMeta, T);
    const Var x = Var::leaf(empty({1, T, 12}, Dtype::f32, kMeta));
    return peak_of(kMeta, [&] {
      const Var y = run(*m.layer, x);
      autograd::backward({{y, full(y.shape(), 1, y.dtype(), kMeta)}});
    });
  };
  CHECK(peak(4096) < 2.2 * static_cast<double>(peak(2048)));
}

TEST_CASE("token_sparse: steps whose position the work reads give what the whole text gives") {
  for (const char* toml :
       {"window = 3\nstride = 4", "window = 3\nstride = 2\nglobal_tokens = 3",
        "window = 3\nstride = 1\nglobal_tokens = 2\nglobal_projections = true",
        "pattern = \"strided\"\nstride = 5", "pattern = \"random\"\nrandom_tokens = 4"})
    for (const int64_t prompt : {1, 2, 7, 18}) {
      INFO(toml << ", prompt " << prompt);
      const Made m = made({"", "token_sparse", concat("heads = 2\nkey_heads = 1\n", toml)});
      State state;
      CHECK(distance_of_placed_steps(*m.layer, sample({1, 30, 12}, "x"), prompt, state) < 1e-12);
    }
}

TEST_CASE("token_sparse: a key that a pattern has no use for is refused") {
  const auto refused = [](const std::string& toml) {
    return tests::message([&] { made({"r", "token_sparse", toml}, Dtype::f32, kMeta); });
  };
  CHECK_THAT(refused("heads = 2\npattern = \"strided\"\nwindow = 3"),
             ContainsSubstring("the pattern \"strided\" has none"));
  CHECK_THAT(refused("heads = 2\npattern = \"random\"\nglobal_tokens = 3"),
             ContainsSubstring("the pattern \"random\" has none"));
  CHECK_THAT(refused("heads = 2\nglobal_projections = true"),
             ContainsSubstring("no use without global_tokens"));
}
