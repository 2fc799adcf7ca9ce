#include "train/exchange/export.h"

#include <cstdio>
#include <filesystem>

#include "core/file.h"
#include "core/text.h"
#include "core/units.h"
#include "train/checkpoint.h"
#include "train/exchange/architecture.h"
#include "train/recipe.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;

// The format that is asked for; else that of the recipe's name, else the first that fits.
const Architecture& chosen(const Draft& draft, const std::string& path, const std::string& as) {
  std::vector<const Architecture*> all;
  if (!as.empty()) {
    const Architecture& a = architecture(as);
    const std::string why = inexpressible(draft, a);
    require(why.empty(), path, ": ", as, " cannot express the recipe: ", why);
    return a;
  }
  std::string reasons;
  for (const bool named : {true, false})
    for (const Architecture* a : architectures()) {
      if ((a->type == draft.name) != named) continue;
      const std::string why = inexpressible(draft, *a);
      if (why.empty()) return *a;
      reasons += concat("\n  ", a->type, ": ", why);
    }
  fail(path, ": no format expresses the recipe:", reasons);
}

// A folder under way beside its place; it goes away unless it is put there.
class PendingFolder {
 public:
  explicit PendingFolder(const std::string& path)
      : path_(fs::path(path).lexically_normal().string()) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
    std::error_code failed;
    const bool there = fs::exists(fs::symlink_status(path_, failed));
    require(!there || (fs::is_directory(path_, failed) && fs::is_empty(path_, failed)), path,
            ": expected a new folder or an empty one; nothing in it is ever replaced");
    temporary_ = temporary_name(path_);
    make_folders(temporary_);
  }
  ~PendingFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  }
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;

  std::string operator/(const std::string& name) const { return temporary_ + "/" + name; }
  const std::string& path() const { return temporary_; }
  void commit() {
    std::error_code failed;
    fs::rename(temporary_, path_, failed);  // over an empty folder too
    require(!failed, path_, ": the finished folder cannot be put there: ", failed.message());
    temporary_.clear();
    const std::string parent = fs::path(path_).parent_path().string();
    flush_folder(parent.empty() ? "." : parent);
  }

 private:
  std::string path_, temporary_;
};

// A tokenizer.json as it came, or a model of SentencePiece.
void write_tokenizer(const PendingFolder& folder, const std::string& model) {
  if (model.empty()) return;
  const bool json = model.starts_with('{');
  write_file(folder / (json ? "tokenizer.json" : "tokenizer.model"), model);
  const Json kind = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  if (json) write_file(folder / "tokenizer_config.json", kind.dump(2) + "\n");
}

Dtype dtype_of(const Hdf5Reader& file, const std::string& wanted) {
  static const std::vector<std::string> dtypes = {"f32", "f64", "bf16"};
  if (wanted.empty()) return file.tensors("parameters").at(0).dtype;
  require(contains(dtypes, wanted), "--dtype ", wanted, ": expected ", joined(dtypes));
  return dtype_from(wanted);
}

}  // namespace

std::string export_model(const ExportArguments& a) {
  const std::string path = find_checkpoint(a.checkpoint);
  const Hdf5Reader file = open_checkpoint(path);
  const RunState state = read_state(file);
  require_guarded_recipe(file, state);
  const Recipe recipe = recipe_from_text(state.recipe, path + ":recipe", {"train.device=cpu"});
  require(file.has_tensor("parameters/embedding.weight"), path, ": holds no embedding");
  const int64_t vocabulary = file.info("parameters/embedding.weight").shape[0];
  const layers::Model model(recipe.toml, vocabulary, Dtype::f32, kMeta, 1);
  require_parameters(file, model.parameters());
  const Dtype dtype = dtype_of(file, a.dtype);
  const Draft draft = draft_of(recipe.toml, model);
  const Architecture& format = chosen(draft, path, a.as);
  TensorMap map(model.parameters());
  format.tensors(draft, map);

  PendingFolder folder(a.folder);
  Json config = config_of(draft, format);
  const std::string torch = dtype == Dtype::f64   ? "float64"
                            : dtype == Dtype::f32 ? "float32"
                                                  : "bfloat16";
  config["torch_dtype"] = torch;
  config["dtype"] = torch;
  write_file(folder / "config.json", config.dump(2) + "\n");
  write_tokenizer(folder, state.tokenizer);
  SafetensorsFolderWriter out(folder.path(), map.announced(dtype), {{"format", "pt"}});
  map.write(
      path, dtype, [&](const std::string& name) { return file.tensor("parameters/" + name); },
      [&](const std::string& name, const Tensor& value) { out.tensor(name, value); });
  out.commit();
  folder.commit();
  return concat(a.folder, ": ", format.type, " of ", count_text(double(model.parameter_count())),
                " parameters, ", torch, " (", format.class_name, ")");
}

int run_export(const ExportArguments& a) {
  std::printf("%s\n", export_model(a).c_str());
  return 0;
}

}  // namespace weft::train
