#include "autograd/watch.h"

#include <utility>

namespace weft::autograd {
namespace {

thread_local const Watch::See* innermost = nullptr;

}  // namespace

Watch::Watch(See see) : see_(std::move(see)), before_(innermost) { innermost = &see_; }

Watch::~Watch() { innermost = before_; }

const Watch::See* watching() { return innermost; }

}  // namespace weft::autograd
