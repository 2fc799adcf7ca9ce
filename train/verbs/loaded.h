// A model as a checkpoint has it, for the verbs that use one.
#pragma once

#include <memory>
#include <string>

#include "train/checkpoint.h"
#include "train/source.h"

namespace weft::train {

struct Loaded {
  std::string path;
  Recipe recipe;
  DataSettings data;
  data::TokenizerPtr tokenizer;  // null for tasks, and where the texts of the tokens are unknown
  std::unique_ptr<layers::Model> model;
  RunState state;
};

// Throws Error where the checkpoint has no texts for its tokens: it `does` no text then ("writes").
void require_tokenizer(const Loaded& l, const char* does);

// `where` is a checkpoint, or the folder of a run. `device` is empty for a GPU where there is one.
// `dtype` is what is computed in: f32; f64 on the CPU; bf16 on a GPU; empty for the recipe's where
// the device has it, else f32.
Loaded load(const std::string& where, const std::string& device, const std::string& dtype = "");

}  // namespace weft::train
