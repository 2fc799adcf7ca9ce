// Shapes for gpu_shapes() of a reference, in the sizes of models of some hundred million weights.
#pragma once

#include <utility>

#include "kernels/contract/operation.h"

namespace weft::kernels {

// A row's name: "linear B4 T4096".
inline std::string sized_name(const std::string& label,
                              const std::vector<std::pair<const char*, int64_t>>& sizes) {
  std::string name = label;
  for (const auto& [letter, size] : sizes) name += concat(" ", letter, size);
  return name;
}

// R rows of D numbers, which no matrix multiplies.
inline GpuShape rows_shape(const std::string& label, int64_t R, int64_t D,
                           std::vector<std::string> with = {}, Settings settings = {}) {
  return {.name = sized_name(label, {{"R", R}, {"D", D}}),
          .sizes = {{"R", R}, {"D", D}},
          .with = std::move(with),
          .settings = std::move(settings)};
}

struct BenchHeads {
  int64_t B = 4, T = 4096, H = 16, Hk = 16, K = 128, V = 128;
};

// A mechanism with a state per head. `each`: of one token and head.
inline GpuShape heads_shape(const std::string& label, const BenchHeads& s, Flops each,
                            std::vector<std::string> with = {}) {
  return {
      .name = sized_name(label, {{"B", s.B}, {"T", s.T}, {"H", s.H}, {"K", s.K}, {"V", s.V}}),
      .sizes =
          {{"B", s.B}, {"T", s.T}, {"H", s.H}, {"Hk", s.Hk}, {"K", s.K}, {"V", s.V}, {"N", s.B}},
      .with = std::move(with),
      .settings = {{"return_state", "false"}},
      .flops = static_cast<double>(s.B * s.T * s.H) * each,
      .uniform = {{"g", {-0.05, -0.05}}, {"beta", {0.5, 0.5}}, {"log_gamma", {-0.03, -0.001}}}};
}

// Softmax attention of as many keys as queries. `pairs`: of one head, seen.
inline GpuShape softmax_shape(const std::string& label, int64_t B, int64_t T, int64_t H, int64_t K,
                              double pairs) {
  return {.name = sized_name(label, {{"B", B}, {"T", T}, {"H", H}, {"K", K}}),
          .sizes = {{"B", B}, {"T", T}, {"S", T}, {"H", H}, {"Hk", H}, {"K", K}, {"V", K}},
          .flops = static_cast<double>(B * H) *
                   softmax_flops(pairs, static_cast<double>(K), static_cast<double>(K))};
}

}  // namespace weft::kernels
