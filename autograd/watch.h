// A look at the operations of a forward pass as they run, without a second way through the model.
// While a Watch lives, apply<M>() hands it every operation of this thread: its tensors by name, and
// the same operation again on other tensors. Without one, apply<M>() reads one pointer.
#pragma once

#include <functional>
#include <string>

#include "kernels/contract/operation.h"

namespace weft::autograd {

struct Watched {
  std::string name;                  // the operation
  std::string owner;                 // the part of the model that called it (OwnerScope)
  kernels::Tensors inputs, outputs;  // by field name; absent ones are not in it
  // The outputs of the same operation with the same settings on other inputs. Nothing is recorded,
  // and no Watch sees it.
  std::function<kernels::Tensors(const kernels::Tensors&)> again;
};

class Watch {
 public:
  using See = std::function<void(const Watched&)>;
  explicit Watch(See see);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  See see_;
  const See* before_;
};

// The innermost Watch of this thread, or null.
const Watch::See* watching();

}  // namespace weft::autograd
