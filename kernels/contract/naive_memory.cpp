// The counts follow the loops of each kernels/NAME/reference.h: a step for each addition, product
// or function of a number that hangs on an input.
#include "kernels/contract/naive_memory.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>

#include "core/memory.h"
#include "core/units.h"

namespace weft::kernels {
namespace {

// A step of kernels/contract/traced.h.
constexpr double kStepBytes = 40;

struct Sizes {
  const Tensors& inputs;
  const Settings& settings;

  bool has(const std::string& name) const { return inputs.count(name) > 0; }
  double size(const std::string& name, int dim) const {
    const auto found = inputs.find(name);
    const bool there = found != inputs.end() && dim < found->second.dims();  // -1: the last
    return there ? static_cast<double>(found->second.size(dim)) : 0;
  }
  double number(const std::string& name, double standard) const {
    const auto found = settings.find(name);
    if (found == settings.end()) return standard;
    return found->second == "true"    ? 1
           : found->second == "false" ? 0
                                      : std::atof(found->second.c_str());
  }
  std::vector<double> numbers(const std::string& name) const {
    return has(name) ? to_doubles(inputs.at(name)) : std::vector<double>();
  }

  // Lengths of the documents of all rows of `name` [B, T, ...].
  std::vector<double> documents(const std::string& name) const {
    const std::vector<double> borders = numbers("cu_seqlens");
    if (borders.empty())
      return std::vector<double>(static_cast<size_t>(size(name, 0)), size(name, 1));
    std::vector<double> lengths;
    for (size_t n = 0; n + 1 < borders.size(); ++n) lengths.push_back(borders[n + 1] - borders[n]);
    return lengths;
  }
};

// What a recurrent mechanism costs: for each pair of a token and one not after it, for each token,
// and for each token of the state that is returned.
struct Costs {
  double pair = 0, token = 0, state = 0;
};

double recurrent(const Sizes& s, const std::string& row, double heads, const Costs& c) {
  double steps = 0;
  const bool state = s.number("return_state", 1) != 0;
  for (const double L : s.documents(row))
    steps += heads * (L * (L + 1) / 2 * c.pair + L * c.token + (state ? L * c.state : 0));
  return steps;
}

double linear(const Sizes& s) {
  const double H = s.size("v", 2), K = s.size("q", 3), V = s.size("v", 3);
  const double gates = s.has("g") + s.has("log_gamma"), gate = gates > 0 ? gates + 3 : 0;
  const double fade = gates > 0 ? 3 : 1;
  Costs c{2 * K + 2 * V + 2 + gate, K * fade + 2 * V, K * (2 * V + 1 + fade + gate)};
  if (s.has("initial_state")) c.token += 2 * K * V;
  if (s.has("initial_z")) c.token += 2 * K;
  return recurrent(s, "q", H, c);
}

double gated_linear(const Sizes& s) {
  const double K = s.size("q", 3), V = s.size("v", 3), state = s.has("initial_state") ? 4 : 0;
  return recurrent(s, "q", s.size("v", 2), {5 * K + 2 * V, K * V * state + V, 5 * K * V});
}

double kda(const Sizes& s) {
  const double K = s.size("k", 3), V = s.size("v", 3), state = s.has("initial_state") ? 6 : 0;
  return recurrent(s, "q", s.size("v", 2), {7 * K + 4 * V, K * V * state, 5 * K * V});
}

double delta(const Sizes& s) {
  const double K = s.size("k", 3), V = s.size("v", 3), gate = s.has("g");
  const double state = s.has("initial_state") ? 4 + 2 * gate : 0;
  return recurrent(s, "q", s.size("v", 2),
                   {2 * V * (2 * K + 3) + 2 * gate, V * K * state, (3 + gate) * K * V});
}

double selective_scan(const Sizes& s) {
  const double E = s.size("x", 2), K = s.size("B", 2);
  return recurrent(s, "x", E, {K * (11 + s.has("dt_bias")), 2 * K + 6, 0});
}

// Pairs of queries [i, end_i) and keys [j, end_j), by position, that see each other.
double seen(double i, double end_i, double j, double end_j, bool causal, double window) {
  double pairs = 0;
  for (; i < end_i; ++i) {
    const double first = window > 0 ? std::max(j, i - window + 1) : j;
    double end = causal ? std::min(end_j, i + 1) : end_j;
    if (window > 0) end = std::min(end, i + window);
    pairs += std::max(0.0, end - first);
  }
  return pairs;
}

// Of one head of all rows. A mask for each row of the batch counts by that of the first.
double pairs_of_attention(const Sizes& s, double block, double mask_head) {
  const double T = s.size("q", 1), S = s.size("k", 1), window = s.number("window", 0);
  const bool causal = s.number("causal", 1) != 0, packed = s.has("cu_seqlens");
  const std::vector<double> mask = s.numbers("block_mask");
  const double across = s.size("block_mask", -1), down = s.size("block_mask", -2);
  const bool by_token = s.number("by_token", 0) != 0;
  double pairs = 0, start = 0;  // the document's first row of q
  for (const double L : s.documents("q")) {
    const double first = packed ? 0 : S - T, keys = packed ? L : S, end = packed ? L : S;
    const double row = by_token ? 1 : block, shift = by_token ? first - start : 0;
    start += packed ? L : 0;
    if (mask.empty()) {
      pairs += seen(first, end, 0, keys, causal, window);
      continue;
    }
    for (double i = 0; i < down; ++i)
      for (double j = 0; j < across; ++j)
        if (mask[static_cast<size_t>((mask_head * down + i) * across + j)] != 0)
          pairs += seen(std::max(first, i * row + shift), std::min(end, (i + 1) * row + shift),
                        j * block, std::min(keys, (j + 1) * block), causal, 0);
  }
  return pairs;
}

constexpr int64_t kStandardBlock = 64;  // of block_sparse

double attention(const Sizes& s) {
  const double H = s.size("q", 2), K = s.size("q", 3), V = s.size("v", 3);
  const double masks = s.size("block_mask", -3), block = s.number("block", kStandardBlock);
  const double pair = 2 * K + 4 * V + 4 + (s.number("softcap", 0) > 0 ? 3 : 0);
  double pairs = 0;
  for (double h = 0; h < std::max(1.0, masks); ++h) pairs += pairs_of_attention(s, block, h);
  return pairs * H / std::max(1.0, masks) * pair;
}

// All else: the products of matrices by their sizes, the rest a few steps an element.
double plain(const std::string& operation, const Sizes& s) {
  if (operation == "matmul") return 2 * s.size("x", 0) * s.size("x", 1) * s.size("w", 0);
  if (operation == "grouped_matmul") return 2 * s.size("x", 0) * s.size("x", 1) * s.size("w", 1);
  if (operation == "random_features") {
    const double K = s.size("x", 3), M = s.size("projection", 1);
    return s.size("x", 0) * s.size("x", 1) * s.size("x", 2) * (3 * K + M * (2 * K + 4) + 4);
  }
  if (operation == "cross_entropy")
    return s.size("x", 0) * s.size("w", 0) * (2 * s.size("x", 1) + 6);
  double elements = 0;
  for (const auto& [name, tensor] : s.inputs) elements += static_cast<double>(tensor.numel());
  return 12 * elements;
}

}  // namespace

double naive_steps(const std::string& operation, const Tensors& inputs, const Settings& settings) {
  const Sizes s{inputs, settings};
  double inputs_alone = 0;
  for (const auto& [name, tensor] : inputs) inputs_alone += static_cast<double>(tensor.numel());
  if (operation == "attention" || operation == "block_sparse") return inputs_alone + attention(s);
  if (operation == "linear") return inputs_alone + linear(s);
  if (operation == "gated_linear") return inputs_alone + gated_linear(s);
  if (operation == "delta") return inputs_alone + delta(s);
  if (operation == "kda") return inputs_alone + kda(s);
  if (operation == "selective_scan") return inputs_alone + selective_scan(s);
  return inputs_alone + plain(operation, s);
}

void require_naive_memory(const std::string& operation, const Tensors& inputs,
                          const Settings& settings) {
  // The list of steps doubles as it grows, and holds the old one meanwhile.
  const double steps = naive_steps(operation, inputs, settings);
  double room = 1;
  while (room < steps) room *= 2;
  const double needed = room * kStepBytes, free = static_cast<double>(available_memory());
  if (needed <= free) return;
  std::string sizes;
  for (const auto& [name, tensor] : inputs)
    sizes += concat(sizes.empty() ? "" : ", ", name, " ", tensor.shape());
  fail(operation, ": the gradient of the naive form keeps about ", count_text(steps),
       " steps for these inputs (", sizes, "), ", bytes_text(needed), " of memory; there are ",
       bytes_text(free),
       ". Use --form chunkwise or --form recurrent (in a check with --dtype f64: below f64 the "
       "naive "
       "form says what rounding costs), or fewer tokens");
}

}  // namespace weft::kernels
