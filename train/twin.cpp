#include "train/twin.h"

#include "core/safetensors.h"
#include "train/checkpoint.h"

namespace weft::train {

void save_twin(const std::string& checkpoint, const std::vector<layers::Parameter>& parameters) {
  const std::string path = twin_path(checkpoint);
  require_own(path);
  const Hdf5Reader file = open_checkpoint(checkpoint);
  const RunState state = read_state(file);
  std::vector<TensorInfo> tensors;
  for (const layers::Parameter& p : parameters)
    tensors.push_back({p.name, p.var.shape(), p.var.value().dtype()});
  SafetensorsWriter twin(
      path, tensors,
      {{"format", "weft"}, {"step", std::to_string(state.step)}, {"recipe", state.recipe}});
  for (const TensorInfo& t : tensors)
    twin.tensor(t.name, file.tensor("parameters/" + t.name).to(t.dtype));
  twin.commit();
}

}  // namespace weft::train
