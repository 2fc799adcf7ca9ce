// What mixers choose that see a part of the past, counted while the model runs: the routers, and
// those that bound what they leave out.
#pragma once

#include <array>
#include <functional>
#include <optional>
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
  // Of a mixer that is no router: the largest and the mean part of a token's weights in a head that
  // the blocks left out may have. `shares` says nothing then.
  struct Lost {
    double most = 0, mean = 0;
  };
  std::optional<Lost> lost;
};

// Those of the forward passes that `run` makes in this thread, in the order of the model; none
// where it has neither. Softmax attention runs once more in each of them, to count its keys.
std::vector<Routes> watch_routes(const std::function<void()>& run);

}  // namespace weft::layers
