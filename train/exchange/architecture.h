// The formats of released models that we read and write, each one file that puts itself on the list
// by
//   const RegisteredArchitecture registered{{"llama", "LlamaForCausalLM", 0, llama_keys, ...}};
#pragma once

#include <string>
#include <vector>

#include "train/exchange/keys.h"
#include "train/exchange/tensor_map.h"

namespace weft::train {

struct Architecture {
  std::string type;        // model_type of config.json, and what --as takes
  std::string class_name;  // its class in transformers or fla
  int order = 1;           // of those that can hold a model, that of the lowest order is written
  void (*keys)(const Keys& k) = nullptr;  // config.json and the recipe, in both directions
  void (*tensors)(const Draft& d, TensorMap& m) = nullptr;
};

struct RegisteredArchitecture {
  explicit RegisteredArchitecture(Architecture a);
};

// By order, then by name.
std::vector<const Architecture*> architectures();
std::vector<std::string> architecture_names();
// Throws Error with the nearest name.
const Architecture& architecture(const std::string& type);
// By model_type, else by the class.
const Architecture& architecture_of(const Config& config);

// What a config means. Throws Error for the first key that our layers cannot express; keys that
// nobody knows are told on standard error.
Draft draft_of(const Config& config, const Architecture& a);
// The config of a draft; what the format cannot hold is lost, and only inexpressible() knows.
Json config_of(const Draft& draft, const Architecture& a);
// A recipe's draft read through the format and back: how it differs then. Empty where the format
// expresses the model.
std::string inexpressible(const Draft& draft, const Architecture& a);

}  // namespace weft::train
