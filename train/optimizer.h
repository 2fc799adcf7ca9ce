// AdamW over a model's parameters, Muon over the matrices of its hidden layers if the recipe says
// so, and the learning rate's schedule. The arithmetic is that of kernels/optimizer.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/optimizer/adamw.h"
#include "layers/layer.h"
#include "train/recipe.h"
#include "train/slices.h"

namespace weft::train {

// The factor on lr at `step` (0-based) of `steps`: linear warm-up, then
//   cosine: half a cosine from 1 down to `final`;
//   wsd: 1, then in the last `decay` part of the steps linearly down to `final`;
//   constant: 1.
double schedule_factor(const ScheduleSettings& s, int64_t step, int64_t steps);

// Does Muon move this parameter? Matrices of mixers and MLPs that decay, experts one by one; no
// filters of convolutions, embeddings and heads.
bool by_muon(const OptimizerSettings& s, const layers::Parameter& p);

// On one rank it holds the moments of all parameters. Of several, each holds those of its slice,
// and of the exact numbers beside bf16 weights its slice alone.
class AdamW {
 public:
  // Moments start at zero and are held for "optimizer" in the memory counts.
  AdamW(const OptimizerSettings& settings, const std::vector<layers::Parameter>& parameters);
  // The same as one of `ranks`. Of several, the parameters move to the blocks of SharedWeights, and
  // masters beside bf16 weights are given up.
  AdamW(const OptimizerSettings& settings, std::vector<layers::Parameter>& parameters,
        std::shared_ptr<Ranks> ranks);

  // What the arithmetic runs over: this rank's slice. The leaves' gradients must be there. Those
  // that Muon moves have no v.
  std::vector<kernels::AdamwTensor> tensors() const;
  kernels::AdamwSettings settings() const;
  // Moves all `tensors` on the CPU; `part` of the schedule is that of Muon's rate. False where a
  // value is not finite afterwards.
  [[nodiscard]] bool update(const std::vector<kernels::AdamwTensor>& tensors,
                            const kernels::AdamwSettings& settings, int64_t step, double lr,
                            double part, double factor) const;

  struct Moments {
    Tensor m, v;  // v is absent where Muon moves the parameter
  };
  // Of each view of this rank; one rank has each parameter in its shape.
  const std::vector<Moments>& moments() const { return moments_; }
  const std::vector<View>& views() const { return slices_.of(ranks_->rank()); }
  const std::vector<layers::Parameter>& parameters() const { return parameters_; }
  Ranks& ranks() const { return *ranks_; }
  const Slices& slices() const { return slices_; }
  // The new weights of each rank go to all others.
  void gather_weights() const;

  enum class Kind { master, m, v };
  bool has(size_t parameter, Kind kind) const {
    return kind != Kind::v || !by_muon(settings_, parameters_[parameter]);
  }
  // All of a parameter's numbers, on the CPU of rank 0; absent elsewhere. All ranks call it.
  Tensor whole(size_t parameter, Kind kind) const;
  // Takes this rank's view out of all of a parameter's numbers.
  void set(size_t parameter, Kind kind, const Tensor& whole) const;

  // The first parameter or moment with a value that is not finite, in words; empty where there is
  // none.
  std::string not_finite() const;

 private:
  const Tensor& held(size_t view, Kind kind) const;
  void make_room();

  OptimizerSettings settings_;
  std::vector<layers::Parameter> parameters_;
  std::shared_ptr<Ranks> ranks_;
  Slices slices_;
  std::optional<SharedWeights> weights_;
  std::vector<Tensor> masters_;
  std::vector<Moments> moments_;
  Tensor room_;  // of Muon
};

}  // namespace weft::train
