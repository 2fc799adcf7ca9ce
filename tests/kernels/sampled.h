// An operation's inputs at any size, for tests beyond its own cases: sizes are given by the letters
// of its fields, values are random and legal.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "kernels/block_sparse/patterns.h"
#include "kernels/contract/operation.h"

namespace weft::tests {

struct Sized {
  std::string operation;
  std::map<std::string, int64_t> sizes;  // "W - 1" has one of its own
  std::vector<std::string> with = {};    // optional inputs that are there
  kernels::Settings settings = {};
  std::vector<int32_t> documents = {};  // cu_seqlens
  double decay = 0.1;                   // the scale of log decays
};

inline std::string label(const Sized& s) {
  std::string text = s.operation;
  for (const auto& [letter, size] : s.sizes) text += concat(" ", letter, size);
  for (const std::string& name : s.with) text += " " + name;
  for (const auto& [name, value] : s.settings) text += concat(" ", name, "=", value);
  return s.documents.empty() ? text : text + " packed";
}

inline Tensor sampled_input(const Sized& s, const kernels::Field& f, uint64_t seed) {
  Shape shape;
  for (const std::string& letter : kernels::letters_of(f.shape)) shape.append(s.sizes.at(letter));
  const std::string name = f.name;
  const Tensor t = kernels::normal(shape, seed, name);
  double* const x = t.data<double>();
  const int64_t n = t.numel(), width = shape[-1];
  const auto map = [&](auto value) {
    for (int64_t i = 0; i < n; ++i) x[i] = value(x[i], i);
  };
  if (name == "g" || name == "log_gamma")
    map([&](double u, int64_t) { return -s.decay * std::abs(u); });
  if (name == "beta") map([](double u, int64_t) { return 2 / (1 + std::exp(-u)); });
  if (name == "initial_state") map([](double u, int64_t) { return 0.5 * u; });
  if (name == "A_log")
    map([&](double u, int64_t i) {
      return 0.1 * u + std::log(static_cast<double>(i % width + 1));
    });
  if (name == "dt_bias") map([](double u, int64_t) { return u - 2; });
  const bool overwrites = s.operation == "delta" || s.operation == "kda";
  if (overwrites && (name == "q" || name == "k"))  // of length 1
    for (double* row = x; row != x + n; row += width) {
      double sum = 0;
      for (int64_t d = 0; d < width; ++d) sum += row[d] * row[d];
      for (int64_t d = 0; d < width; ++d) row[d] /= std::sqrt(sum);
    }
  return t;
}

// In f64 on the CPU. Index tensors are made where the operation needs them: token ids below V,
// blocks of a window and the first, groups of unequal sizes.
inline kernels::NamedCase sampled(const Sized& s, uint64_t seed = 1) {
  const kernels::Operation& op = kernels::operation(s.operation);
  kernels::NamedCase c{label(s), {}, s.settings};
  for (const kernels::Field& f : op.inputs())
    if (!f.optional || std::find(s.with.begin(), s.with.end(), f.name) != s.with.end())
      c.inputs[f.name] = sampled_input(s, f, seed);
  const Random random(seed, stream_of("index"));
  for (const kernels::Setting& setting : op.settings()) {
    if (setting.name == "cu_seqlens" && !s.documents.empty())
      c.inputs["cu_seqlens"] = tensor_of(s.documents);
    if (setting.name == "block_mask")
      c.inputs["block_mask"] =
          kernels::longformer_blocks(kernels::block_count(s.sizes.at("S"), 64), 3, 1);
    if (setting.name == "projection")
      c.inputs["projection"] =
          kernels::normal({s.sizes.at("H"), s.sizes.at("M"), s.sizes.at("K")}, seed, "projection");
    if (setting.name == "ids" || setting.name == "targets") {
      std::vector<int32_t> ids(static_cast<size_t>(s.sizes.at("R")));
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random.below(static_cast<uint64_t>(s.sizes.at("V")), i));
      c.inputs[setting.name] = tensor_of(ids);
    }
    if (setting.name == "index" && s.operation != "router") {  // which row each takes
      const bool combine = s.operation == "combine_rows";
      const int64_t n = combine ? s.sizes.at("R") * s.sizes.at("k") : s.sizes.at("Q");
      std::vector<int32_t> rows(static_cast<size_t>(n));
      const auto count = static_cast<uint64_t>(s.sizes.at(combine ? "Q" : "R"));
      for (size_t i = 0; i < rows.size(); ++i)
        rows[i] = static_cast<int32_t>(random.below(count, i));
      c.inputs["index"] = tensor_of(rows);
    }
    if (setting.name == "offsets") {
      const int64_t E = s.sizes.at("E"), R = s.sizes.at("R");
      std::vector<int64_t> offsets;
      for (int64_t e = 0; e <= E; ++e) offsets.push_back(R * e * e / (E * E));
      c.inputs["offsets"] = tensor_of(offsets);
    }
  }
  return c;
}

}  // namespace weft::tests
