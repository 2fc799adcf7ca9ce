#include "train/checkpoint.h"

#include <optional>
#include <set>
#include <utility>

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

void check_shape(const Hdf5Reader& file, const std::string& name, const Shape& shape) {
  const TensorInfo info = file.info(name);
  require(info.shape == shape, file.path(), ": tensor \"", name, "\" has shape ", info.shape,
          ", the recipe's model expects ", shape);
}

void load(const Hdf5Reader& file, const std::string& name, const Tensor& into) {
  check_shape(file, name, into.shape());
  into.copy_from(file.tensor(name));
}

}  // namespace

namespace {

using Kind = AdamW::Kind;
constexpr std::pair<const char*, Kind> kKinds[] = {
    {"parameters/", Kind::master}, {"optimizer/m/", Kind::m}, {"optimizer/v/", Kind::v}};

void put_state(Hdf5Writer& file, const RunState& state) {
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
}

// Calls f(name, tensor) for each tensor of the state, in order; on ranks other than 0, which send
// theirs, the tensors are absent.
template <class F>
void each_tensor(const AdamW& optimizer, const F& f) {
  for (size_t i = 0; i < optimizer.parameters().size(); ++i)
    for (const auto& [group, kind] : kKinds)
      if (optimizer.has(i, kind))
        f(group + optimizer.parameters()[i].name, optimizer.whole(i, kind));
}

}  // namespace

void save_checkpoint(const std::string& path, const RunState& state, const AdamW& optimizer) {
  std::optional<Hdf5Writer> file;
  std::string failed;
  const auto attempt = [&](const auto& f) {
    if (!failed.empty() || !optimizer.ranks().first()) return;
    try {
      f();
    } catch (const std::exception& e) {  // the other ranks still send theirs
      failed = e.what();
    }
  };
  attempt([&] {
    require_own(path);
    put_state(file.emplace(path), state);
  });
  each_tensor(optimizer, [&](const std::string& name, const Tensor& here) {
    attempt([&] {
      require(autograd::all_finite(here), path, ": ", name,
              " holds a value that is not finite; such a state is not saved");
      file->tensor(name, here);
    });
  });
  attempt([&] { file->commit(); });
  failed = optimizer.ranks().exchange("a checkpoint", failed)[0];
  require(failed.empty(), failed);
}

void save_start(const std::string& path, const RunState& state,
                const std::function<void(const PutTensor& put)>& each) {
  require_own(path);
  Hdf5Writer file(path);
  put_state(file, state);
  each([&](const std::string& name, const Tensor& value) {
    file.tensor("parameters/" + name, value);
  });
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

void require_parameters(const Hdf5Reader& file, const std::vector<layers::Parameter>& parameters) {
  std::set<std::string> known;
  for (const layers::Parameter& p : parameters) {
    const std::string name = "parameters/" + p.name;
    require(file.has_tensor(name), file.path(), ": tensor \"", name,
            "\" is missing: the checkpoint is of another recipe");
    check_shape(file, name, p.var.shape());
    known.insert(name);
  }
  check_known(file, "parameters", known);
}

void require_guarded_recipe(const Hdf5Reader& checkpoint, const RunState& state) {
  constexpr size_t kGuarded = 4096;  // HDF5 has a checksum for an attribute of that size
  // A file that says that it has a seal was opened, so the seal holds.
  require(state.recipe.size() <= kGuarded || checkpoint.has_attribute("", kSealed),
          checkpoint.path(), ": nothing guards its recipe, ", state.recipe.size(),
          " bytes in a file without a seal; expected at most ", kGuarded,
          ", or a file that this version wrote. `weft train RECIPE --resume --from ",
          checkpoint.path(),
          "` compares the recipe with yours, and writes checkpoints with a seal");
}

void load_parameters(const Hdf5Reader& file, std::vector<layers::Parameter>& parameters) {
  require_parameters(file, parameters);
  for (layers::Parameter& p : parameters) {
    const std::string name = "parameters/" + p.name;
    if (p.master) load(file, name, p.master);
    if (!p.master) load(file, name, p.var.value());  // its exact numbers are shared out
    if (p.master && !p.var.value().shares_memory(p.master)) p.var.value().copy_from(p.master);
  }
}

void load_masters(const Hdf5Reader& file, const AdamW& optimizer) {
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const layers::Parameter& p = optimizer.parameters()[i];
    if (!p.master) optimizer.set(i, Kind::master, file.tensor("parameters/" + p.name));
  }
}

void load_optimizer(const Hdf5Reader& file, const AdamW& optimizer) {
  require(file.has_group("optimizer"), file.path(),
          ": holds parameters alone, and no optimizer to go on with; begin a run with them by "
          "--begin");
  std::set<std::string> known;
  for (size_t i = 0; i < optimizer.parameters().size(); ++i)
    for (const auto& [group, kind] : kKinds) {
      const layers::Parameter& p = optimizer.parameters()[i];
      const std::string name = group + p.name;
      // Numbers that the model holds were read with it.
      if ((kind == Kind::master && p.master) || !optimizer.has(i, kind)) continue;
      check_shape(file, name, p.var.shape());
      optimizer.set(i, kind, file.tensor(name));
      if (kind != Kind::master) known.insert(name);
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
