// A checkpoint as a released model: a folder with config.json and model.safetensors, or shards of
// it, which transformers (or fla) loads.
#pragma once

#include <string>

namespace weft::train {

struct ExportArguments {
  std::string checkpoint;  // or the folder of a run
  std::string folder;      // new or empty
  std::string as;          // a model_type; empty: the first that expresses the recipe
  std::string dtype;       // f32, f64 or bf16; empty: as in the checkpoint
};
// The folder appears whole or not at all. Returns what was written, in words. Throws Error that
// names the first key of the recipe that the format cannot express.
std::string export_model(const ExportArguments& a);
// The same for the command line.
int run_export(const ExportArguments& a);

}  // namespace weft::train
