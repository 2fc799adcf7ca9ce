// What a file was meant to hold, for the comparison with what it holds.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/hdf5.h"

namespace weft::h5 {

class Written {
 public:
  void tensor(const std::string& name, Dtype dtype, const Shape& shape, uint64_t hash);
  void attribute(const std::string& object, const std::string& key, const Attribute& value);

  // Throws Error that names the first thing that is missing, too much, or not as it was meant.
  // Allocates no tensor.
  void compare(const Hdf5Reader& file) const;

 private:
  struct Meant {
    Dtype dtype = Dtype::f32;
    Shape shape;
    uint64_t hash = 0;
  };
  std::map<std::string, Meant> tensors_;
  std::map<std::string, std::map<std::string, Attribute>> attributes_;  // by object, then key
};

}  // namespace weft::h5
