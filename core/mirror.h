// Tensors of the host that lie on a device as well. Borders of packed documents, say, are read by
// the host, which checks them and counts, and by kernels: they are sent once, not by every
// operation.
#pragma once

#include "core/tensor.h"

namespace weft {

// While it lives, this thread's host.to(device of `copy`) gives `copy`, which holds the same
// numbers whenever the device reads them: whoever made the scope sees to that.
class MirrorScope {
 public:
  MirrorScope(const Tensor& host, const Tensor& copy);
  ~MirrorScope();
  MirrorScope(const MirrorScope&) = delete;
  MirrorScope& operator=(const MirrorScope&) = delete;

 private:
  Tensor host_, copy_;
  MirrorScope* before_;  // the scope around this one
  friend Tensor mirror_of(const Tensor& host, Device device);
};

// The copy of a scope that lives; absent where there is none.
Tensor mirror_of(const Tensor& host, Device device);

}  // namespace weft
