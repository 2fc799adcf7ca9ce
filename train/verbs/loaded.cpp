#include "train/verbs/loaded.h"

#include "data/llmc.h"

namespace weft::train {
namespace {

// The checkpoint's recipe, for the device at hand. A checkpoint holds f32 whatever it was trained
// in.
Recipe recipe_for(const std::string& text, const std::string& name, const std::string& device,
                  const std::string& wanted) {
  TomlTable toml = toml_from_text(text, name);
  const Device at = device_from(device.empty() ? "auto" : device);
  const std::string other = at.is_cuda() ? "bf16" : "f64";
  require(wanted.empty() || wanted == "f32" || wanted == other, "--dtype ", wanted,
          ": expected f32 or ", other, " on ", at);
  const std::string dtype = toml.table("train").string("dtype", "f32");
  std::vector<std::string> set = {
      concat("train.device=\"", at.is_cuda() ? concat(at) : "cpu", "\"")};
  if (!wanted.empty())
    set.push_back(concat("train.dtype=\"", wanted, "\""));
  else if (dtype == (at.is_cuda() ? "f64" : "bf16"))
    set.emplace_back("train.dtype=\"f32\"");
  return recipe_from_text(text, name, set);
}

}  // namespace

void require_tokenizer(const Loaded& l, const char* does) {
  require(l.tokenizer != nullptr, l.path,
          l.data.is_task ? ": was trained on a task and " : ": holds no tokenizer and ", does,
          " no text");
}

Loaded load(const std::string& where, const std::string& device, const std::string& dtype) {
  Loaded l;
  l.path = find_checkpoint(where);
  const Hdf5Reader file = open_checkpoint(l.path);
  l.state = read_state(file);
  require_guarded_recipe(file, l.state);
  l.recipe = recipe_for(l.state.recipe, l.path + ":recipe", device, dtype);
  set_products(l.recipe.train);
  // The vocabulary is the checkpoint's own: the data need not be here.
  l.data = read_data(l.recipe.toml);
  if (l.data.is_tokens) {
    if (!l.state.tokenizer.empty()) l.tokenizer = data::tokenizer_from(l.state.tokenizer, l.path);
  } else if (!l.data.is_task) {
    l.tokenizer = data::tokenizer_from(l.state.tokenizer, l.path);
    const bool given = data::is_token_dataset(l.data.sources) && l.data.vocabulary > 0;
    if (!given) l.data.vocabulary = l.tokenizer->vocabulary();
  }
  l.model = std::make_unique<layers::Model>(l.recipe.toml, l.data.vocabulary, l.recipe.train.dtype,
                                            l.recipe.train.device, l.recipe.train.seed);
  load_parameters(file, l.model->parameters());
  l.model->at_step(l.state.step);
  return l;
}

}  // namespace weft::train
