// What mixers choose that see a part of the past, counted while the model runs: the routers, and
// those that bound what they leave out.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace weft::layers {

// What document_router gives a token of a document's opening for every pattern but the densest. No
// logit of a choice comes near.
inline constexpr double kOpeningLogit = -1e20;
// Is that the first of the logits of such a token, divided by a temperature of at most 1?
constexpr bool of_opening(double first_logit) { return first_logit < kOpeningLogit / 2; }

struct Routes {
  std::string owner;  // "layers.3.mixer"
  // Of the tokens met, the part of each choice; while choices are soft, the mean of what each is
  // given. Of a router: no key, a window, selected blocks, all of the past. Of document_router: its
  // patterns, and what is met are the tokens behind an opening.
  std::vector<double> shares;
  bool by_document = false;  // shares are those of document_router
  double opening = 0;        // tokens of openings; they are none of `tokens`
  // Keys that a token, of an opening or not, sees in a head, on average; while choices are soft, by
  // all calls together.
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
// `counted`: of one pass, which rows [B T] count; all where it is empty.
std::vector<Routes> watch_routes(const std::function<void()>& run,
                                 const std::vector<bool>& counted = {});
// Adds what other passes of the same layers gave.
void add_routes(std::vector<Routes>& to, const std::vector<Routes>& more);

}  // namespace weft::layers
