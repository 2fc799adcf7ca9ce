#include "train/checkpoint.h"

#include <set>

#include "autograd/tape.h"

namespace weft::train {
namespace {

constexpr const char* kFormat = "weft checkpoint 1";

// Under `group` lies what was loaded, and nothing else.
void check_known(const Hdf5Reader& file, const std::string& group,
                 const std::set<std::string>& known) {
  for (const TensorInfo& t : file.tensors(group))
    require(known.count(t.name) > 0, file.path(), ": tensor \"", t.name,
            "\" is not in the recipe's model: the checkpoint is of another recipe");
}

void load(const Hdf5Reader& file, const std::string& name, const Tensor& into) {
  const TensorInfo info = file.info(name);
  require(info.shape == into.shape(), file.path(), ": tensor \"", name, "\" has shape ", info.shape,
          ", the recipe's model expects ", into.shape());
  into.copy_from(file.tensor(name));
}

}  // namespace

void save_checkpoint(const std::string& path, const RunState& state, const AdamW& optimizer) {
  require_own(path);
  Hdf5Writer file(path);
  file.attribute("", "format", std::string(kFormat));
  file.attribute("", "version", std::string(WEFT_VERSION));
  file.attribute("", "step", state.step);
  file.attribute("", "tokens", state.tokens);
  file.attribute("", "best_loss", state.best_loss);
  file.attribute("", "best_step", state.best_step);
  file.attribute("", "seed", static_cast<int64_t>(state.seed));
  file.attribute("", "recipe", state.recipe);
  file.attribute("", "recipe_name", state.recipe_name);
  for (const auto& [key, value] : state.data) file.attribute("data", key, value);
  if (!state.tokenizer.empty())
    file.tensor("tokenizer/model", Dtype::u8, {static_cast<int64_t>(state.tokenizer.size())},
                state.tokenizer.data());
  const auto put = [&](const std::string& name, const Tensor& t) {
    const Tensor here = t.to(kCpu);
    require(autograd::all_finite(here), path, ": ", name,
            " holds a value that is not finite; such a state is not saved");
    file.tensor(name, here);
  };
  const auto& parameters = optimizer.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i].name;
    put("parameters/" + name, parameters[i].master);
    put("optimizer/m/" + name, optimizer.moments()[i].m);
    put("optimizer/v/" + name, optimizer.moments()[i].v);
  }
  file.commit();
}

Hdf5Reader open_checkpoint(const std::string& path) {
  Hdf5Reader file(path, "checkpoint");
  require(file.has_attribute("", "format") && file.text("", "format") == kFormat, path,
          ": is an HDF5 file but not a checkpoint of this program (attribute format is not \"",
          kFormat, "\")");
  return file;
}

RunState read_state(const Hdf5Reader& file) {
  RunState s;
  s.step = file.integer("", "step");
  s.tokens = file.number("", "tokens");
  s.best_loss = file.number("", "best_loss");
  s.best_step = file.integer("", "best_step");
  s.seed = static_cast<uint64_t>(file.integer("", "seed"));
  s.recipe = file.text("", "recipe");
  s.recipe_name = file.text("", "recipe_name");
  if (file.has_group("data"))
    for (const auto& [key, value] : file.attributes("data"))
      s.data[key] = file.integer("data", key);
  if (file.has_tensor("tokenizer/model")) {
    const Tensor model = file.tensor("tokenizer/model");
    s.tokenizer.assign(reinterpret_cast<const char*>(model.data<uint8_t>()),
                       static_cast<size_t>(model.numel()));
  }
  return s;
}

void load_parameters(const Hdf5Reader& file, std::vector<layers::Parameter>& parameters) {
  std::set<std::string> known;
  for (layers::Parameter& p : parameters) {
    const std::string name = "parameters/" + p.name;
    require(file.has_tensor(name), file.path(), ": tensor \"", name,
            "\" is missing: the checkpoint is of another recipe");
    load(file, name, p.master);
    if (!p.var.value().shares_memory(p.master)) p.var.value().copy_from(p.master);
    known.insert(name);
  }
  check_known(file, "parameters", known);
}

void load_optimizer(const Hdf5Reader& file, const AdamW& optimizer) {
  std::set<std::string> known;
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const std::string m = "optimizer/m/" + optimizer.parameters()[i].name;
    const std::string v = "optimizer/v/" + optimizer.parameters()[i].name;
    load(file, m, optimizer.moments()[i].m);
    load(file, v, optimizer.moments()[i].v);
    known.insert({m, v});
  }
  check_known(file, "optimizer", known);
}

int64_t step_of_best(const std::string& out) {
  try {
    return has_best(out) ? read_state(open_checkpoint(best_path(out))).step : -1;
  } catch (const Error&) {
    return -1;
  }
}

bool is_best(const std::string& checkpoint, int64_t step, double loss) {
  try {
    const RunState s = read_state(open_checkpoint(checkpoint));
    return s.step == step && s.best_step == step && s.best_loss == loss;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace weft::train
