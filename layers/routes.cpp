#include "layers/routes.h"

#include <algorithm>
#include <cmath>

#include "autograd/watch.h"

namespace weft::layers {
namespace {

using autograd::Watched;

// Where all scores are zero, the log-sum-exp of a row is the logarithm of the keys that it sees.
double keys_in(const Watched& w, const std::vector<bool>& counted) {
  kernels::Tensors in = w.inputs;
  in["q"] = zeros_like(in.at("q"));
  const std::vector<double> lse = to_doubles(w.again(in).at("lse"));  // [B, H, T]
  const auto T = static_cast<size_t>(in.at("q").size(1)),
             H = static_cast<size_t>(in.at("q").size(2));
  double keys = 0;
  for (size_t i = 0; i < lse.size(); ++i)
    if (counted.empty() || counted[i / T / H * T + i % T]) keys += std::exp(lse[i]);
  return keys / static_cast<double>(H);
}

// Adds a choice for each row [R, n]: all of the largest where it is hard, else the softmax.
void add_rows(const Tensor& logits, bool hard, const std::vector<bool>& counted, Routes& to) {
  const std::vector<double> z = to_doubles(logits);
  const auto n = static_cast<size_t>(logits.size(1));
  to.shares.resize(n);
  for (size_t at = 0; at < z.size(); at += n) {
    const auto row = z.begin() + static_cast<std::ptrdiff_t>(at);
    if (!counted.empty() && !counted[at / n]) continue;
    const auto end = row + static_cast<std::ptrdiff_t>(n), most = std::max_element(row, end);
    if (of_opening(z[at])) {
      to.opening += 1;
      continue;
    }
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += std::exp(z[at + i] - *most);
    for (size_t i = 0; i < n; ++i)
      to.shares[i] +=
          hard ? most - row == static_cast<std::ptrdiff_t>(i) : std::exp(z[at + i] - *most) / sum;
    to.tokens += 1;
  }
  to.by_document = to.by_document || to.opening > 0;
}

// Adds the bounds [B, H, T] of tokens; a token counts once, with all its heads.
void add_bounds(const Tensor& bound, Routes& to) {
  if (!to.lost) to.lost.emplace();
  for (const double x : to_doubles(bound)) {
    to.lost->most = std::max(to.lost->most, x);
    to.lost->mean += x / static_cast<double>(bound.size(1));
  }
  to.tokens += static_cast<double>(bound.size(0) * bound.size(2));
}

}  // namespace

std::vector<Routes> watch_routes(const std::function<void()>& run,
                                 const std::vector<bool>& counted) {
  std::vector<Routes> found;
  std::string owner;
  Tensor logits, bound;  // of a choice that has not been counted yet
  bool hard = false;
  const autograd::Watch watch([&](const Watched& w) {
    if (w.name == "router") {
      owner = w.owner;
      logits = w.inputs.at("logits");
      hard = w.outputs.at("weight").size(1) == 1;
    }
    if (w.name == "select_mass") {
      owner = w.owner;
      bound = w.outputs.at("bound");
    }
    if (w.name != "block_sparse" || w.owner != owner) return;
    auto at = std::find_if(found.begin(), found.end(),
                           [&](const Routes& r) { return r.owner == w.owner; });
    if (at == found.end()) at = found.insert(found.end(), Routes{w.owner});
    if (logits) add_rows(logits, hard, counted, *at);
    if (bound) add_bounds(bound, *at);
    logits = bound = {};
    at->keys += keys_in(w, counted);
  });
  run();
  for (Routes& r : found) {
    for (double& share : r.shares) share /= std::max(r.tokens, 1.0);
    r.keys /= std::max(r.tokens + r.opening, 1.0);
    if (r.lost) r.lost->mean /= r.tokens;
  }
  return found;
}

void add_routes(std::vector<Routes>& to, const std::vector<Routes>& more) {
  if (to.empty()) {
    to = more;
    return;
  }
  for (size_t i = 0; i < to.size(); ++i) {
    Routes& a = to[i];
    const Routes& b = more.at(i);
    const double tokens = a.tokens + b.tokens, all = tokens + a.opening + b.opening;
    for (size_t k = 0; k < a.shares.size() && tokens > 0; ++k)
      a.shares[k] = (a.shares[k] * a.tokens + b.shares[k] * b.tokens) / tokens;
    if (all > 0) a.keys = (a.keys * (a.tokens + a.opening) + b.keys * (b.tokens + b.opening)) / all;
    if (a.lost && b.lost && tokens > 0)
      a.lost = {std::max(a.lost->most, b.lost->most),
                (a.lost->mean * a.tokens + b.lost->mean * b.tokens) / tokens};
    a.by_document = a.by_document || b.by_document;
    a.tokens = tokens;
    a.opening += b.opening;
  }
}

}  // namespace weft::layers
