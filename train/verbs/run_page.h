// The page of the curves of runs, for `weft plot`, and for `weft train --page`, which renews it.
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>

#include "train/verbs/curves.h"

namespace weft::train {

// The numbers of these metrics; `thin` leaves out some of a long run.
nlohmann::ordered_json curves_json(const Runs& runs, const std::vector<std::string>& metrics,
                                   bool thin);
// A `live` page loads itself anew every few seconds, for as long as the run goes on.
std::string run_page(const Runs& runs, const std::vector<std::string>& metrics,
                     const std::string& against, bool live = false);

// `RUN/plot.html` of a run that goes on. Throws Error where another program's file lies there.
class LivePage {
 public:
  LivePage(std::string run, bool overwrite);
  void renew();  // if it is time: the page costs the run little
  // The last one, which stays as it is. Returns why it could not be written, or nothing.
  std::string finish();

 private:
  using Clock = std::chrono::steady_clock;
  void write(bool live) const;

  std::string run_, path_;
  bool written_ = false;
  Clock::time_point last_;
  std::chrono::duration<double> cost_{0};
};

}  // namespace weft::train
