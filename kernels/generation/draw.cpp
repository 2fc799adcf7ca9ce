#include "kernels/generation/draw.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"

namespace weft::kernels {

double Sampling::chance(uint64_t index) const {
  return Random(seed, stream_of("sample")).uniform(index);
}

Tensor Sampling::drawable(const Tensor& logits) const {
  return tokens > 0 && tokens < logits.numel() ? logits.reshape({-1}).slice(0, 0, tokens) : logits;
}

int32_t draw_token(const Tensor& logits, const Sampling& s, uint64_t index) {
  const std::vector<double> x = to_doubles(s.drawable(logits));
  std::vector<int32_t> order;
  for (size_t i = 0; i < x.size(); ++i)
    if (std::isfinite(x[i])) order.push_back(static_cast<int32_t>(i));
  require(!order.empty(), "no token can be drawn: none of the model's ", x.size(),
          " logits is a finite number");
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  if (s.temperature <= 0) return order[0];
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < order.size())
    order.resize(static_cast<size_t>(s.top_k));
  std::vector<double> p;
  double sum = 0;
  for (const int32_t token : order) {
    p.push_back(std::exp((x[static_cast<size_t>(token)] - x[static_cast<size_t>(order[0])]) /
                         s.temperature));
    sum += p.back();
  }
  // Keep the likeliest until they hold top_p of the probability.
  double kept = 0;
  size_t n = 0;
  while (n < p.size() && (n == 0 || kept < s.top_p * sum)) kept += p[n++];
  double mark = s.chance(index) * kept;
  for (size_t i = 0; i < n; ++i) {
    mark -= p[i];
    if (mark < 0) return order[i];
  }
  return order[n - 1];
}

}  // namespace weft::kernels
