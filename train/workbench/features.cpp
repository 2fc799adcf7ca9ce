#include "train/workbench/features.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/json.h"
#include "kernels/contract/operation.h"
#include "kernels/features/projection.h"
#include "kernels/features/random_features.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr int64_t kMost = 1 << 20;  // pairs, draws, features

std::vector<int64_t> numbers(const FeaturesArguments& a) {
  return a.features.empty() ? std::vector<int64_t>{16, 64, 256, 1024} : a.features;
}

void check(const FeaturesArguments& a) {
  const auto counts = [](const char* what, int64_t n) {
    require(n >= 1 && n <= kMost, "features: ", what, " is ", n, ", expected 1 to ", kMost);
  };
  counts("--width", a.width);
  counts("--pairs", a.pairs);
  counts("--draws", a.draws);
  for (const int64_t M : a.features) counts("a number of --features", M);
  require(a.size > 0 && a.size <= 100, "features: --size is ", a.size, ", expected above 0 to 100");
}

double product(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

FeaturesRow measured(const FeaturesArguments& a, const Tensor& q, const Tensor& k,
                     FeaturesRow row) {
  const double scale = 1 / std::sqrt(static_cast<double>(a.width));
  double squares = 0, sum = 0;
  std::vector<double> sizes;
  for (int64_t draw = 0; draw < a.draws; ++draw) {
    const RandomFeatures::Options o{.kind = row.kind,
                                    .projection = random_projection({.features = row.features,
                                                                     .width = a.width,
                                                                     .orthogonal = row.orthogonal,
                                                                     .seed = a.seed,
                                                                     .draw = draw})};
    const Tensor f = forward<RandomFeatures>({q, {}}, o).y,
                 g = forward<RandomFeatures>({k, {}}, o).y;
    const int64_t M = f.size(3);
    for (int64_t i = 0; i < a.pairs; ++i) {
      const double exact = std::exp(
          scale * product(q.data<double>() + i * a.width, k.data<double>() + i * a.width, a.width));
      const double off = product(f.data<double>() + i * M, g.data<double>() + i * M, M) / exact - 1;
      sum += off;
      sizes.push_back(std::abs(off));
      squares += off * off;
    }
  }
  const auto n = static_cast<double>(a.draws * a.pairs);
  row.error = std::sqrt(squares / n);
  row.bias = sum / n;
  const auto middle = sizes.begin() + static_cast<std::ptrdiff_t>(sizes.size() / 2);
  std::nth_element(sizes.begin(), middle, sizes.end());
  row.median = *middle;
  return row;
}

std::string text_of(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

std::vector<FeaturesRow> features(const FeaturesArguments& a) {
  check(a);
  const Shape shape{1, a.pairs, 1, a.width};
  const Tensor q = normal(shape, a.seed, "q", a.size), k = normal(shape, a.seed, "k", a.size);
  std::vector<FeaturesRow> rows;
  for (const char* kind : {"positive", "trigonometric"})
    for (const bool orthogonal : {true, false})
      for (const int64_t M : numbers(a)) rows.push_back(measured(a, q, k, {kind, orthogonal, M}));
  return rows;
}

int run_features(const FeaturesArguments& a, std::ostream& out) {
  const std::vector<FeaturesRow> rows = features(a);
  std::vector<std::vector<std::string>> lines;
  for (const FeaturesRow& r : rows) {
    if (a.json) {
      nlohmann::ordered_json j;
      j["kind"] = r.kind;
      j["orthogonal"] = r.orthogonal;
      j["features"] = r.features;
      j["error"] = r.error;
      j["median"] = r.median;
      j["bias"] = r.bias;
      out << json_line(j) << "\n";
    }
    lines.push_back({r.kind, r.orthogonal ? "right angles" : "by chance",
                     std::to_string(r.features), text_of("%.4f", r.error),
                     text_of("%.4f", r.median), text_of("%+.4f", r.bias)});
  }
  if (a.json) return 0;
  print_table(out, {"features", "rows", "number", "error", "median", "bias"}, lines);
  out << "\nerror, median and bias: root mean square, median size and mean of estimate / exp(q.k / "
         "sqrt "
      << a.width << ") - 1, over " << a.pairs << " pairs and " << a.draws
      << " draws; numbers of q and k have "
      << "deviation " << a.size << "\n";
  return 0;
}

}  // namespace weft::train
