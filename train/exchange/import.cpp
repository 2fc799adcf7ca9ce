#include "train/exchange/import.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>

#include "core/file.h"
#include "core/text.h"
#include "core/units.h"
#include "train/checkpoint.h"
#include "train/exchange/architecture.h"
#include "train/source.h"

namespace weft::train {
namespace {

// The vocabulary of the folder where our tokenizers can read it; else why there is none.
std::string tokenizer_of(const std::string& folder, int64_t vocabulary) {
  std::string reasons;
  for (const char* name : {"/tokenizer.model", "/tokenizer.json"}) {
    const std::string path = folder + name;
    if (!std::filesystem::exists(path)) continue;
    try {
      const std::string model = read_file(path);
      require(!model.empty(), "it is empty");
      const int64_t tokens = data::tokenizer_from(model, path)->vocabulary();
      require(tokens <= vocabulary, "it has ", tokens, " tokens, and the model has ", vocabulary);
      return model;
    } catch (const Error& e) {
      reasons += concat(path, ": ", e.what(), ": ");
    }
  }
  if (reasons.empty())
    reasons = folder + ": holds neither tokenizer.model of SentencePiece nor tokenizer.json: ";
  std::fprintf(stderr, "%sthe checkpoint takes token numbers, and no text\n", reasons.c_str());
  return "";
}

// The dtypes of the file's tensors, and what those of the checkpoint lose of them.
std::string dtypes_of(const SafetensorsReader& file, Dtype to) {
  std::vector<std::string> names;
  bool rounded = false;
  for (const SafeTensor& t : file.entries()) {
    if (!contains(names, t.dtype)) names.push_back(t.dtype);
    const bool wider = t.dtype == "F64" ? to != Dtype::f64 : t.dtype != "BF16" && to == Dtype::bf16;
    rounded = rounded || wider;
  }
  return concat(joined(names), " there, ", to, " here", rounded ? ", rounded" : "");
}

}  // namespace

std::string import_model(const ImportArguments& a) {
  static const std::vector<std::string> dtypes = {"f32", "f64", "bf16"};
  require(contains(dtypes, a.dtype), "--dtype ", a.dtype, ": expected ", joined(dtypes));
  const Dtype dtype = dtype_from(a.dtype);
  const Config config = read_config(a.folder);
  const Architecture& format = architecture_of(config);
  const Draft draft = draft_of(config, format);
  RunState state;
  state.recipe = recipe_of(draft, a.dtype);
  state.recipe_name = draft.name;
  state.seed = 1;
  state.best_loss = std::numeric_limits<double>::infinity();
  const Recipe recipe = recipe_from_text(state.recipe, config.where() + " as a recipe");
  const int64_t vocabulary = vocabulary_of(read_data(recipe.toml));
  const layers::Model model(recipe.toml, vocabulary, Dtype::f32, kMeta, 1);
  recipe.finish();
  const SafetensorsReader file(a.folder);
  TensorMap map(model.parameters());
  format.tensors(draft_of(recipe.toml, model), map);
  map.require_fits(file);
  require_output(a.out, {a.folder});
  if (!a.recipe.empty()) require_output(a.recipe, {a.folder});
  state.tokenizer = tokenizer_of(a.folder, vocabulary);
  save_start(a.out, state, [&](const TensorMap::Put& put) { map.read(file, dtype, put); });
  if (!a.recipe.empty()) write_file(a.recipe, state.recipe);
  return concat(a.out, ": ", format.type, " of ", count_text(double(model.parameter_count())),
                " parameters in ", draft.layers.size(), " layers, vocabulary ", vocabulary, " (",
                dtypes_of(file, dtype), ")");
}

int run_import(const ImportArguments& a) {
  std::printf("%s\n", import_model(a).c_str());
  return 0;
}

}  // namespace weft::train
