// A recipe's model as plain data, layer by layer: what stands between a recipe in TOML and the keys
// of config.json. A draft that is made from a recipe holds every key that the layers read, with the
// value that it has in effect, so that two drafts are equal where two models are.
#pragma once

#include <string>
#include <vector>

#include "core/toml.h"
#include "layers/model.h"
#include "train/exchange/config.h"

namespace weft::train {

struct DraftLayer {
  std::string mixer;           // as the list of mixers names it
  Json keys = Json::object();  // of its mixer
  std::string mlp = "swiglu", norms = "pre";
};

struct Draft {
  int64_t vocabulary = 0;
  std::string name;  // of the recipe
  Json model = Json::object(), mlp = Json::object(), moe = Json::object();
  std::vector<DraftLayer> layers;

  // The value at "model.width", "mlp.width", "moe.experts", at "attention.heads" of the first layer
  // with that mixer, or "layers.mlp", the MLP of the first layer that has one without experts, or
  // "layers.norms"; null where there is none.
  Json get(const std::string& path) const;
  // Sets it, in all such layers.
  void set(const std::string& path, const Json& value);
  bool uses(const std::string& mixer) const;
  bool dense() const;  // some layer has an MLP without experts
};

// What a recipe means. The model is built on the meta device, and stays with the caller: the shapes
// of its parameters are those of a checkpoint. Throws Error as layers::Model does.
Draft draft_of(const TomlTable& recipe, const layers::Model& model);

// The recipe of a draft, with layers that are alike in one table, and `[data] tokens`.
std::string recipe_of(const Draft& draft, const std::string& dtype);

// The first key in which two drafts differ, as "attention.scale of layer 3", and its two values;
// keys that change no logit (context, init, weights of losses, recompute) do not count. Empty where
// they mean one model.
struct Difference {
  std::string key, one, other;
};
std::vector<Difference> differences(const Draft& one, const Draft& other);

}  // namespace weft::train
