// DLPack's tensors as ours, and ours as DLPack's.
#pragma once

#include <string>

#include "core/tensor.h"
#include "library/weft.h"

namespace weft::library {

// The number of the device's type. Others may give one that our declaration has no name for, and
// such a value of an enumeration may not be read as one.
int type_of(const DLDevice& device);

// A copy of the tensor, contiguous, on its device. Throws Error, which begins with `what`, for what
// we have no tensor for: other dtypes and devices, more than six dimensions, no data.
Tensor tensor_from(const DLTensor& from, const std::string& what);

// A contiguous tensor with the shape and the strides that a DLTensor points to.
class Exported {
 public:
  explicit Exported(const Tensor& tensor);
  Exported(const Exported&) = delete;
  Exported& operator=(const Exported&) = delete;

  const DLTensor& view() const { return managed_.dl_tensor; }
  const Tensor& tensor() const { return tensor_; }
  // The same memory once more, which the caller's call of `deleter` lets go.
  DLManagedTensor* managed() const;

 private:
  Tensor tensor_;
  Shape shape_, strides_;
  DLManagedTensor managed_{};
};

}  // namespace weft::library
