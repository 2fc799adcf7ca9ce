// What the routers of a model choose, counted while it runs.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

namespace weft::layers {

struct Routes {
  std::string owner;  // "layers.3.mixer"
  // Of the tokens met, the part with no key, a window, selected blocks, all of the past; while
  // choices are soft, the mean of what each is given.
  std::array<double, 4> shares{};
  // Keys that a token sees in a head, on average; while choices are soft, by all calls together.
  double keys = 0;
  double tokens = 0;
};

// Those of the forward passes that `run` makes in this thread, in the order of the model; none
// where it has no router. Softmax attention runs once more in each of them, to count its keys.
std::vector<Routes> watch_routes(const std::function<void()>& run);

}  // namespace weft::layers
