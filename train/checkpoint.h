// What a run is, to and from one HDF5 file:
//   parameters/NAME, optimizer/m/NAME, optimizer/v/NAME   tensors under the parameters' own names
//   tokenizer/model                                       u8, absent for bytes
//   attributes of the root: format, version, step, seed, recipe (TOML), best_loss, tokens
//   attributes of the group `data`: the position in the training data
// A file appears whole or not at all, and a checksum covers every byte of it (core/hdf5.h).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/hdf5.h"
#include "layers/model.h"
#include "train/optimizer.h"
#include "train/run_folder.h"

namespace weft::train {

struct RunState {
  int64_t step = 0;        // steps done
  double tokens = 0;       // positions seen
  double best_loss = 0;    // lowest held-out loss so far, nats; infinity before the first
  int64_t best_step = -1;  // the step at which it was seen
  std::map<std::string, int64_t> data;  // position in the training data
  uint64_t seed = 0;                    // all random numbers follow from it and from step
  std::string recipe;                   // TOML, overrides included
  std::string recipe_name;
  std::string tokenizer;  // bytes of a trained tokenizer's model; empty for bytes
};

// Throws Error, with an older file at `path` untouched, if it cannot be written. All ranks call it;
// rank 0 writes the file, a parameter at a time, and it is the same file for any number of ranks.
void save_checkpoint(const std::string& path, const RunState& state, const AdamW& optimizer);

// A checkpoint to begin a run with: the parameters that `each` hands to its argument one by one, by
// their names, and no optimizer.
using PutTensor = std::function<void(const std::string& name, const Tensor& value)>;
void save_start(const std::string& path, const RunState& state,
                const std::function<void(const PutTensor& put)>& each);

// Reads the file once from end to end. Throws Error for a missing, foreign or damaged file.
Hdf5Reader open_checkpoint(const std::string& path);
// The state alone. Throws Error for what is missing or of another kind.
RunState read_state(const Hdf5Reader& checkpoint);
// Whoever takes the recipe from the file alone calls this. Throws Error where no checksum guards
// the recipe: a file without a seal, of an earlier version, guards texts of 4 KiB at most.
void require_guarded_recipe(const Hdf5Reader& checkpoint, const RunState& state);
// Fills the model's parameters; names the first that is missing, too much, or of another shape.
void load_parameters(const Hdf5Reader& checkpoint, std::vector<layers::Parameter>& parameters);
// The same without reading them, for a model on the meta device.
void require_parameters(const Hdf5Reader& checkpoint,
                        const std::vector<layers::Parameter>& parameters);
// The moments, and the exact numbers that the optimizer holds. Throws Error for a checkpoint
// without an optimizer.
void load_optimizer(const Hdf5Reader& checkpoint, const AdamW& optimizer);
// The exact numbers alone: the moments stay as they are.
void load_masters(const Hdf5Reader& checkpoint, const AdamW& optimizer);

// The step of a run's best.h5; -1 where there is none, or none that can be read.
int64_t step_of_best(const std::string& out);

// Is this the checkpoint that was saved at `step`, when `loss` was the lowest held-out loss of the
// run? False where it cannot be read.
bool is_best(const std::string& checkpoint, int64_t step, double loss);

}  // namespace weft::train
