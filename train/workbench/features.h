// `weft features`: how well random features stand for the kernel of softmax attention, exp(q.k)
// with q.k scaled by K^-1/2, by their number and by how they are drawn.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace weft::train {

struct FeaturesArguments {
  int64_t width = 64;             // K
  std::vector<int64_t> features;  // none: 16 to 1024, by fours
  double size = 0.5;              // of the numbers of q and k, which are normal
  int64_t pairs = 64, draws = 32;
  uint64_t seed = 1;
  bool json = false;
};

// One way of drawing, at one number of features: over all pairs and draws, of estimate / exact - 1.
struct FeaturesRow {
  std::string kind;  // "positive", "trigonometric"
  bool orthogonal = false;
  int64_t features = 0;  // rows drawn; trigonometric ones give two features each
  double error = 0;      // root of the mean square: a few far off weigh most
  double median = 0;     // of its size
  double bias = 0;       // mean
};
std::vector<FeaturesRow> features(const FeaturesArguments& a);

int run_features(const FeaturesArguments& a, std::ostream& out);

}  // namespace weft::train
