// Weights of other implementations under the names that ours have.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/hdf5.h"

namespace weft::layers {

// Tensors of a group by name, without the group's.
using Named = std::map<std::string, Tensor>;

inline Named group_of(const Hdf5Reader& file, const std::string& group) {
  Named out;
  for (const TensorInfo& info : file.tensors(group))
    out[info.name.substr(group.size() + 1)] = file.tensor(info.name);
  return out;
}

// The source's names and shapes to ours.
using Rename = std::function<Named(const Named&)>;

// Convolutions without the dimension of size one.
inline Named plain(const Named& in) {
  Named out;
  for (const auto& [name, t] : in)
    out[name] = t.dims() == 3 && name.find("conv1d") != std::string::npos
                    ? t.reshape({t.size(0), t.size(2)})
                    : t;
  return out;
}

}  // namespace weft::layers
