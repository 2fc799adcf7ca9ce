// Sizes at the borders where the CPU's forms cut their work: each is met one below, at and one
// above, once and again, so that there is a part with the least and a part that is cut short. The
// constants are those of the forms: a new value brings its sizes, and a new constant fails the last
// test here.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>

#include "core/text.h"
#include "kernels/contract/agreement.h"
#include "kernels/delta/wy.h"
#include "kernels/features/random_features.h"
#include "kernels/gated_linear/problem.h"
#include "kernels/kda/problem.h"
#include "kernels/linear/problem.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/rows/cuts.h"
#include "kernels/rows/pointwise.h"
#include "kernels/selective_scan/cuts.h"
#include "kernels/softmax/cuts.h"
#include "kernels/tile/cpu_gemm.h"
#include "kernels/tokens/chunk.h"
#include "kernels/tokens/cuts.h"
#include "kernels/tokens/vector_gates.h"
#include "tests/catch.h"
#include "tests/gap.h"
#include "tests/kernels/sampled.h"
#include "tests/paths.h"

namespace weft::kernels {
namespace {

using tests::Sized;
using Sizes = std::map<std::string, int64_t>;

std::vector<int64_t> around(int64_t border) { return {border - 1, border, border + 1}; }

// How many pieces of `part` there must be for `least` in all.
int64_t pieces(int64_t least, int64_t part) { return (least + part - 1) / part; }

class List {
 public:
  // `base` with each of the letter's sizes; `same` is another letter for the same dimension.
  void add(const Sized& base, const std::string& letter, const std::vector<int64_t>& sizes,
           const std::string& same = "") {
    for (const int64_t size : sizes) {
      cases.push_back(base);
      cases.back().sizes[letter] = size;
      if (!same.empty()) cases.back().sizes[same] = size;
    }
  }
  std::vector<Sized> cases;
};

void add_scans(List& list) {
  const std::vector<std::string> all = {"D", "z", "dt_bias", "initial_state"};
  const auto base = [&](int64_t T, int64_t E) {
    return Sized{"selective_scan", {{"B", 2}, {"T", T}, {"E", E}, {"K", 2}, {"N", 2}}, all};
  };
  for (const int64_t blocks : {1, 2, 3})
    list.add(base(5, 0), "E", around(blocks * selective_scan::kBlock));
  list.add(base(2, 0), "E", around(selective_scan::kBlock * selective_scan::kBlocks));
  for (const int64_t segments : {1, 2})
    list.add(base(0, 3), "T", around(segments * selective_scan::kSegment));
  list.add(base(0, 3), "T", around(pieces(selective_scan::kSumRows, 2)));
  // A step whose channels, two to a lane at least, are worth one thread, and then two.
  Sized step = base(1, 0);
  step.sizes["B"] = step.sizes["N"] = 1;
  step.sizes["K"] = 512;
  for (const int64_t lanes : {kLanes<double>, kLanes<float>})
    for (const int64_t tasks : {1, 2})
      list.add(step, "E", around(tasks * selective_scan::kStepGrain / 512 * lanes));
}

void add_softmax(List& list) {
  const auto base = [](const char* op, int64_t Hk, int64_t K) {
    return Sized{op, {{"B", 1}, {"H", Hk}, {"Hk", Hk}, {"K", K}, {"V", 3}}};
  };
  for (const char* op : {"attention", "block_sparse"}) {
    for (int64_t heads = 1; heads <= kSoftmaxUnits + 1; ++heads) {
      const int64_t parts = pieces(kSoftmaxUnits, heads);  // each has a tile; the first has two
      list.add(base(op, heads, 2), "T", {(parts - 1) * kSoftmaxTile + 1, parts * kSoftmaxTile + 1},
               "S");
    }
    list.add(base(op, 1, 2), "T", around(kSoftmaxTile), "S");
    list.add(base(op, 1, 2), "T", around(kSoftmaxStrip), "S");
  }
  Sized wide = base("attention", 1, 0);
  wide.sizes["T"] = 1;
  wide.sizes["S"] = kSoftmaxTile + 1;  // two parts
  list.add(wide, "K", around(kSoftmaxSumGrain));
}

// One token of as many heads as are worth a thread, and as two.
void add_steps(List& list) {
  constexpr int64_t K = 128, V = 64;
  constexpr int64_t heads = kStateGrain / (K * V);
  for (const char* op : {"linear", "gated_linear", "delta", "kda"})
    for (const int64_t threads : {1, 2})
      for (const int64_t H : around(threads * heads))
        list.add(
            {op, {{"B", 1}, {"H", H}, {"Hk", H}, {"K", K}, {"V", V}, {"N", 1}}, {"initial_state"}},
            "T", {1});
}

void add_recurrences(List& list) {
  const auto base = [](const char* op, std::vector<std::string> with) {
    with.emplace_back("initial_state");
    return Sized{
        op, {{"B", 1}, {"H", 2}, {"Hk", 1}, {"K", 3}, {"V", 2}, {"N", 1}}, std::move(with)};
  };
  const auto add = [&](int64_t border) {
    for (const char* op : {"linear", "gated_linear", "delta", "kda"}) {
      const std::string name = op;
      const bool gated = name == "linear" || name == "delta";
      list.add(base(op, gated ? std::vector<std::string>{"g"} : std::vector<std::string>{}), "T",
               around(border));
    }
    list.add(base("linear", {}), "T", around(border));
  };
  for (const int64_t chunks : {1, 2})
    for (const int64_t chunk :
         std::set<int64_t>{kMaxChunk, linear::kChunk, gated_linear::kChunk, kda::kChunk})
      add(chunks * chunk);
  for (const int64_t subs : {1, 2, 3}) add(subs * kSub);
  add_steps(list);
  for (const char* letter : {"K", "V"})
    for (const int64_t width : around(delta::kNarrow)) {
      Sized s = base("delta", {"g"});
      s.sizes[letter] = width;
      for (const int64_t chunk : {delta::kShortChunk, kMaxChunk}) list.add(s, "T", around(chunk));
    }
}

void add_convolutions(List& list) {
  const auto base = [](int64_t B, std::vector<int32_t> documents = {}) {
    const int64_t N = documents.empty() ? B : static_cast<int64_t>(documents.size()) - 1;
    return Sized{"short_conv",
                 {{"B", B}, {"D", 2}, {"W", 3}, {"W - 1", 2}, {"N", N}},
                 {"bias", "initial_state"},
                 {},
                 std::move(documents)};
  };
  constexpr int64_t kAll = cuts::kConvPiece * cuts::kConvTasks;  // from here a task has two pieces
  for (const int64_t n : {1, 2}) list.add(base(1), "T", around(n * cuts::kConvPiece));
  list.add(base(1), "T", around(kAll));
  list.add(base(1), "T", {2 * kAll + cuts::kConvPiece + 1});
  list.add(base(3), "T", {kAll / 3 + 1});
  list.add(base(1, {0, 5, kAll - 1, kAll + 1}), "T", {kAll + 1});
}

void add_rows(List& list) {
  constexpr int64_t kBlocks = cuts::kRowBlocks * cuts::kBlockRows;  // from here blocks grow
  const std::vector<Sized> norms = {{"rms_norm", {}, {"weight", "residual"}},
                                    {"layer_norm", {}, {"weight", "bias"}},
                                    {"gated_norm", {}, {"weight"}},
                                    {"l2_norm", {}}};
  for (Sized s : norms) {
    s.sizes = {{"D", 3}};
    list.add(s, "R", around(cuts::kBlockRows));
    list.add(s, "R", around(kBlocks));
    s.sizes = {{"D", cuts::kRowGrain / 32}};
    list.add(s, "R", around(32));
    list.add(s, "R", {64 + 1});  // a third piece
  }
  for (Sized s : norms) {
    if (s.with.empty()) continue;
    s.sizes = {{"R", cuts::kBlockRows + 1}};
    list.add(s, "D", around(cuts::kSumGrain));
  }
  list.add({"router", {{"E", 3}}, {}, {{"top_k", "2"}}}, "R", around(kBlocks));
  list.add({"router", {{"E", 3}}, {}, {{"top_k", "2"}}}, "R", around(cuts::kRowGrain / 3 + 1));
  for (const char* op : {"activation", "gated_activation"}) {
    list.add({op, {{"D", 1}}}, "R", around(cuts::kActivationGrain));
    list.add({op, {{"D", 3}}}, "R", {2 * cuts::kActivationGrain / 3 + 1});
  }
  list.add({"block_means", {{"B", 1}, {"H", 2}, {"K", 3}}}, "T", around(64));
  list.add({"rotary", {{"B", 1}, {"H", 2}, {"K", 4}}}, "T", around(cuts::kRowGrain / 8));
  for (const int64_t T : {cuts::kRotaryFew, cuts::kRotaryShort, cuts::kRotaryMany,
                          cuts::kRotaryShort + cuts::kRotaryMany})
    list.add({"rotary", {{"B", 1}, {"H", 1}, {"K", 2}}}, "T", around(T));
  const int64_t wide = 4 * cuts::kRowGrain / cuts::kRotaryTokens;  // more angles than are cut
  for (const int64_t n : {1, 2})
    list.add({"rotary", {{"B", 1}, {"H", 1}, {"K", wide}}}, "T", around(n * cuts::kRotaryTokens));
}

void add_features(List& list) {
  for (const char* kind : {"positive", "trigonometric"})
    for (const int64_t blocks : {1, 2})
      list.add({"random_features",
                {{"B", 1}, {"T", 3}, {"H", 2}, {"K", 3}},
                {"shift"},
                {{"kind", kind}}},
               "M", around(blocks * kFeatureBlock));
  list.add({"random_features", {{"B", 1}, {"H", 2}, {"K", 2}, {"M", cuts::kRowGrain / 32}}}, "T",
           around(8));
  for (const int64_t T :
       {cuts::kRowGrain / 8, cuts::kBlockRows, cuts::kRowBlocks * cuts::kBlockRows})
    list.add({"cosine_features", {{"B", 1}, {"H", 2}, {"K", 4}}}, "T", around(T));
  list.add({"forget_gate", {{"D", 1}}, {}, {{"bound", "0.3"}}}, "R",
           around(cuts::kActivationGrain));
}

void add_scatters(List& list) {
  // One strip and a part, two and a part; fewer numbers than are cut, just as many, and more.
  for (const int64_t D : {cuts::kScatterStrip - 1, cuts::kScatterStrip, cuts::kScatterStrip + 1,
                          2 * cuts::kScatterStrip, 2 * cuts::kScatterStrip + 7}) {
    const int64_t rows = pieces(cuts::kScatterWhole, D);
    list.add({"embedding", {{"V", 5}, {"D", D}}}, "R", {rows - 1, rows, rows + 1});
    list.add({"permute_rows", {{"R", 7}, {"D", D}}, {"weight"}}, "Q", {rows - 1, rows, rows + 1});
    list.add({"combine_rows", {{"Q", 2 * rows}, {"D", D}, {"k", 2}}}, "R", {pieces(rows, 2), rows});
  }
}

void add_products(List& list) {
  list.add({"matmul", {{"I", 2}, {"O", 3}}, {"bias"}}, "R", around(cuts::kBiasRows));
  list.add({"matmul", {{"R", 3}, {"I", 2}}, {"bias"}}, "O", around(cuts::kBiasColumns));
  list.add({"matmul", {{"R", 3}, {"O", 2}}}, "I", around(kSumPart<double>));
  list.add({"matmul", {{"R", 3}, {"O", 2}}}, "I", around(kSumPart<float>));
  list.add({"matmul", {{"I", 2}, {"O", 3}}}, "R", around(kGemmRows));
  list.add({"matmul", {{"I", 27}, {"O", 26}}}, "R", {2 * kGemmPanel + 1});
  list.add({"matmul", {{"I", 27}, {"R", 26}}}, "O", {2 * kGemmPanel + 1});
  constexpr int64_t kLong = 2 * kGemmPanel;  // two panels where there are terms enough
  for (const char* side : {"R", "O"}) {
    const Sized s{"matmul", {{"R", 16}, {"O", 16}, {side, kLong}}};
    list.add(s, "I", around(pieces(kGemmTerms, 16 * kLong)));
    Sized steps{"matmul", {{"R", 16}, {"O", 16}, {"I", 64}}};
    for (const int64_t n : {0, 1, 2}) list.add(steps, side, around(kLong + 2 * n * kGemmStep));
    list.add(steps, side, around(2 * kGemmPanel / 3));
  }
  for (const int64_t tiles : {1, 2}) {
    const int64_t rows = tiles * cuts::kExpertTile;
    list.add({"grouped_matmul", {{"E", 1}, {"I", 3}, {"O", 2}}}, "R", around(rows));
    list.add({"grouped_matmul", {{"E", 2}, {"I", 2}, {"R", 8}}}, "O", around(rows));
  }
  list.add({"grouped_matmul", {{"E", 2}, {"I", 3}, {"O", 2}}}, "R", {2 * cuts::kExpertTile});
}

void add_losses(List& list) {
  for (const int64_t tiles : {1, 2})
    list.add({"cross_entropy", {{"R", 3}, {"D", 2}}, {"bias"}}, "V",
             around(tiles * cuts::kLossColumns));
  list.add({"cross_entropy", {{"V", cuts::kLossColumns}, {"D", 1}}}, "R",
           around(cuts::kLossTile / cuts::kLossColumns));
}

const std::vector<Sized>& borders() {
  static const std::vector<Sized> cases = [] {
    List list;
    add_scans(list);
    add_softmax(list);
    add_recurrences(list);
    add_convolutions(list);
    add_rows(list);
    add_features(list);
    add_scatters(list);
    add_products(list);
    add_losses(list);
    return list.cases;
  }();
  return cases;
}

// The recurrent form where there is one, which costs less and is held to the definition elsewhere.
Form judge_of(const Operation& op) {
  const std::vector<Form> forms = op.forms();
  const bool recurrent = std::find(forms.begin(), forms.end(), Form::recurrent) != forms.end();
  return recurrent ? Form::recurrent : Form::naive;
}

}  // namespace

TEST_CASE("borders: below, at and above each border of its work an operation keeps its bounds") {
  for (const Sized& s : borders()) {
    const NamedCase c = tests::sampled(s);
    const Operation& op = operation(s.operation);
    for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
      const Expected e = expected_of(op, c, dtype, judge_of(op));
      const Tensors y = op.forward(Form::chunkwise, e.inputs, c.settings);
      const Tensors dx = op.backward(Form::chunkwise, e.inputs, c.settings, e.output_gradients);
      for (const Agreement& a : agreement(e, y, dx)) {
        INFO(c.name << ", " << name_of(dtype) << ": " << text(a));
        CHECK(a.passed());
      }
    }
  }
}

TEST_CASE("borders: every operation has sizes at its borders") {
  for (const Operation* op : operations()) {
    INFO(op->name());
    CHECK(std::any_of(borders().begin(), borders().end(),
                      [&](const Sized& s) { return s.operation == op->name(); }));
  }
}

TEST_CASE("borders: sums and products of any length are those of a loop") {
  for (const int64_t pieces : {1, 2})
    for (const int64_t n : around(pieces * cuts::kPointwiseGrain)) {
      const Tensor a = normal({n}, 1, "a"), b = normal({n}, 1, "b"), w = normal({3}, 1, "w");
      const Tensor x = normal({n / 3, 3, 1}, 1, "x");
      const std::vector<double> u = to_doubles(a), v = to_doubles(b), y = to_doubles(x);
      std::vector<double> sum, product, scaled_by, along, times;
      for (size_t i = 0; i < u.size(); ++i) {
        sum.push_back(u[i] + v[i]);
        product.push_back(u[i] * v[i]);
        scaled_by.push_back(u[i] * 0.3);
      }
      for (size_t i = 0; i < y.size(); ++i) {
        along.push_back(y[i] + w.data<double>()[i % 3]);
        times.push_back(y[i] * w.data<double>()[i % 3]);
      }
      INFO(n << " numbers");
      CHECK(to_doubles(added(a, b)) == sum);
      CHECK(to_doubles(multiplied(a, b)) == product);
      CHECK(to_doubles(scaled(a, 0.3)) == scaled_by);
      CHECK(to_doubles(added_along(x, w, 1)) == along);
      CHECK(to_doubles(multiplied_along(x, w, 1)) == times);
    }
}

TEST_CASE("borders: sums along a dimension of any size are those of a loop") {
  for (const int64_t pieces : {1, 2})
    for (const int64_t n : around(pieces * cuts::kReducedGrain)) {
      const Tensor a = normal({3, n, 5}, 1, "a"), b = normal({3, n, 5}, 1, "b");
      const std::vector<double> u = to_doubles(a), v = to_doubles(b);
      std::vector<double> sum(static_cast<size_t>(n)), product(sum.size());
      for (size_t i = 0; i < u.size(); ++i) {
        const size_t j = i / 5 % sum.size();
        sum[j] += u[i];
        product[j] += u[i] * v[i];
      }
      INFO(n << " numbers");
      CHECK(tests::gap(to_doubles(reduced_to(a, {}, 1, Dtype::f64)), sum).widest < 1e-13);
      CHECK(tests::gap(to_doubles(reduced_to(a, b, 1, Dtype::f64)), product).widest < 1e-13);
    }
}

TEST_CASE("borders: a norm counts every number of every gradient") {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const int64_t border : {cuts::kAdamwPiece, 2 * cuts::kAdamwPiece, kAdamwCut})
      for (const int64_t n : around(border)) {
        std::vector<AdamwTensor> list(2);
        list[0].grad = normal({n}, 1, "a").to(dtype);
        list[1].grad = normal({3, 5}, 1, "b").to(dtype);
        double squares = 0;
        for (const AdamwTensor& t : list)
          for (const double x : to_doubles(t.grad)) squares += x * x;
        INFO(n << " numbers");
        CHECK(gradient_norm(list) == Approx(std::sqrt(squares)).epsilon(1e-12));
      }
}

// What has a name and a number in the CPU's forms either cuts work, and then this file names it, or
// is listed here with what it is.
TEST_CASE("borders: a constant that cuts work brings its sizes") {
  namespace fs = std::filesystem;
  const std::map<std::string, std::string> others = {
      {"kAlign", "rows of scratch memory"},
      {"kNext", "how far ahead memory is asked for"},
      {"kWidth", "lanes of a vector, or the width of a benchmark"},
      {"kVocabulary", "a benchmark"},
      {"kExperts", "a benchmark"},
      {"kHeads", "a benchmark"},
      {"kChannels", "a benchmark"},
      {"kFar", "a position beyond all"},
      {"kFarthest", "a position beyond all"},
      {"kTile", "kernels/tile/tile.h, whose tests walk all sizes"},
      {"kSubs", "chunks in sub-chunks"},
      {"kSubChunk", "a benchmark"},
      {"kStepNumbers", "numbers of a step"},
      {"kRoutes", "choices of a router"},
      {"kMostDensities", "patterns of a router, of which a setting has fewer or as many"},
      {"kStandardBlock", "what a setting is where it is not given"},
  };
  const auto read = [](const fs::path& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string here = read(tests::source_path("tests/kernels/borders_test.cpp"));
  const std::regex constant(R"(constexpr int64_t (k\w+) =)");
  int found = 0;
  for (const auto& entry : fs::recursive_directory_iterator(tests::source_path("kernels"))) {
    const std::string ending = entry.path().extension();
    if (ending != ".h" && ending != ".cpp") continue;
    const std::string text = read(entry.path());
    for (std::sregex_iterator i(text.begin(), text.end(), constant), end; i != end; ++i) {
      const std::string name = (*i)[1];
      const bool derived = text.find(name + " = cuts::") != std::string::npos;
      ++found;
      INFO(entry.path() << ": " << name);
      CHECK((derived || others.count(name) > 0 ||
             std::regex_search(here, std::regex("[^\"\\w]" + name + "\\b"))));
    }
  }
  CHECK(found > 25);
}

// A number without a name brings no sizes.
TEST_CASE("borders: what a thread takes at least has a name") {
  namespace fs = std::filesystem;
  const std::regex bare(
      R"((grain|block|chunk|panels?|width)\w* ?(=|\()[^;{]*[^\w.](\d{2,}|1 << \d+)\b)"
      R"(|parallel_ranges\([^;{]*, ?\d{2,},)");
  int found = 0;
  for (const auto& entry : fs::recursive_directory_iterator(tests::source_path("kernels"))) {
    if (entry.path().extension() != ".cpp") continue;
    std::ifstream in(entry.path());
    for (std::string line; std::getline(in, line);) {
      found += line.find("parallel_") != std::string::npos;
      if (line.find("require(") != std::string::npos) continue;
      INFO(entry.path() << ": " << line);
      CHECK_FALSE(std::regex_search(line, bare));
    }
  }
  CHECK(found > 40);
}

}  // namespace weft::kernels
