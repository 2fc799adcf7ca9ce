// A released model as a checkpoint: recipe and parameters, at step 0, without the moments of an
// optimizer. `weft train RECIPE --begin CHECKPOINT` begins a run with it.
#pragma once

#include <string>

namespace weft::train {

struct ImportArguments {
  std::string folder;         // with config.json and model.safetensors, or its shards
  std::string out;            // the checkpoint
  std::string recipe;         // a file for the recipe too; empty: none
  std::string dtype = "f32";  // of the parameters: f32, f64 or bf16
};
// Returns what was made, in words. Throws Error, with nothing written, for the first key or tensor
// that our layers cannot express.
std::string import_model(const ImportArguments& a);
// The same for the command line.
int run_import(const ImportArguments& a);

}  // namespace weft::train
