// The twin of a checkpoint: its parameters as safetensors, for other programs, beside it and under
// its name: step-NNNNNNNNNN.safetensors, best.safetensors. A run that has lost a twin goes on all
// the same, and makes it again: it is read from the checkpoint.
#pragma once

#include <string>
#include <vector>

#include "layers/model.h"

namespace weft::train {

// Writes the twin of a checkpoint, whole or not at all: each parameter under its name, in the dtype
// that the model computes in. The metadata are format "weft", step and recipe (TOML). Throws Error,
// with an older twin untouched, if it cannot.
void save_twin(const std::string& checkpoint, const std::vector<layers::Parameter>& parameters);

}  // namespace weft::train
