#include "train/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "core/random.h"

namespace weft::train {

int32_t draw_token(const Tensor& logits, const SamplingSettings& s, uint64_t index) {
  const std::vector<double> x = to_doubles(logits);
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
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
  double mark = Random(s.seed, stream_of("sample")).uniform(index) * kept;
  for (size_t i = 0; i < n; ++i) {
    mark -= p[i];
    if (mark < 0) return order[i];
  }
  return order[n - 1];
}

Generated generate(const layers::Model& model, const std::vector<int32_t>& prompt, int64_t count,
                   const SamplingSettings& settings, const std::function<bool(int32_t)>& on_token) {
  require(!prompt.empty(), "generate: the prompt is empty, expected at least one token");
  require(static_cast<int64_t>(prompt.size()) <= model.context(), "the prompt has ", prompt.size(),
          " tokens, the model's context ", model.context(), "; shorten the prompt");
  const autograd::NoGrad no_grad;
  layers::Generation generation;
  generation.capacity = static_cast<int64_t>(prompt.size()) + count;
  Tensor logits =
      model.next(tensor_of(prompt).reshape({1, static_cast<int64_t>(prompt.size())}), generation);
  Generated out;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = draw_token(logits, settings, static_cast<uint64_t>(i));
    out.tokens.push_back(token);
    if (on_token && !on_token(token)) break;
    if (i + 1 < count)
      logits = model.next(tensor_of(std::vector<int32_t>{token}).reshape({1, 1}), generation);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  out.tokens_per_second = static_cast<double>(out.tokens.size()) / std::max(seconds, 1e-9);
  out.state_bytes = generation.bytes();
  return out;
}

}  // namespace weft::train
