#include "library/dlpack.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/sizes.h"

namespace weft::library {
namespace {

constexpr uint8_t kBool = 6;  // newer than the declarations of weft.h

std::string text_of(const DLDataType& t) {
  const char* kind = t.code == kDLInt      ? "int"
                     : t.code == kDLUInt   ? "uint"
                     : t.code == kDLFloat  ? "float"
                     : t.code == kDLBfloat ? "bfloat"
                     : t.code == kBool     ? "bool"
                                           : "numbers of another kind, ";
  return concat(kind, int{t.bits}, t.lanes == 1 ? "" : concat("x", t.lanes));
}

Dtype dtype_from(const DLDataType& t, const std::string& what) {
  const auto is = [&](int code, int bits) {
    return t.lanes == 1 && t.code == code && t.bits == bits;
  };
  if (is(kDLFloat, 64)) return Dtype::f64;
  if (is(kDLFloat, 32)) return Dtype::f32;
  if (is(kDLBfloat, 16)) return Dtype::bf16;
  if (is(kDLInt, 64)) return Dtype::i64;
  if (is(kDLInt, 32)) return Dtype::i32;
  if (is(kDLUInt, 8) || is(kBool, 8)) return Dtype::u8;
  fail(what, " is ", text_of(t), "; expected float64, float32 or bfloat16, or int32, int64, uint8 ",
       "or bool where the operation takes whole numbers");
}

Device device_from(const DLDevice& d, const std::string& what) {
  const int type = type_of(d);
  if (type == kDLCPU || type == kDLCUDAHost) return kCpu;
  require(type == kDLCUDA, what, " is on device type ", type,
          " of DLPack; expected 1 (CPU) or 2 (CUDA)");
  require(d.device_id >= 0, what, " is on GPU ", d.device_id, "; expected 0 or more");
  const std::string lacking = why_no_cuda(d.device_id);
  require(lacking.empty(), what, " is on a GPU: ", lacking);
  return {DeviceType::cuda, d.device_id};
}

DLDataType dtype_of(Dtype t) {
  const auto bits = static_cast<uint8_t>(8 * size_of(t));
  if (t == Dtype::bf16) return {kDLBfloat, bits, 1};
  if (is_float(t)) return {kDLFloat, bits, 1};
  return {static_cast<uint8_t>(t == Dtype::u8 ? kDLUInt : kDLInt), bits, 1};
}

// How far a tensor reaches, in elements from its first: down (`from`) and up (`to`).
struct Reach {
  int64_t from = 0, to = 0;
};

Reach reach_of(const Shape& shape, const Shape& strides, const std::string& what) {
  Reach reach;
  for (int i = 0; i < shape.dims(); ++i) {
    int64_t way = 0;
    const bool fits = !__builtin_mul_overflow(shape[i] - 1, strides[i], &way) &&
                      !__builtin_add_overflow(way < 0 ? reach.from : reach.to, way,
                                              way < 0 ? &reach.from : &reach.to);
    require(fits, what, ": shape ", shape, " with strides ", strides,
            " reaches further than 64 bits count");
  }
  return reach;
}

// Copies element after element: the last dimension in the inner loop.
void gather(std::byte* to, const std::byte* from, const Shape& shape, const Shape& strides,
            int64_t size) {
  const int last = shape.dims() - 1;
  const int64_t n = shape[last], step = strides[last] * size, rows = shape.numel() / n;
  std::array<int64_t, Shape::kMax> at{};
  for (int64_t row = 0; row < rows; ++row) {
    const std::byte* p = from;
    for (int d = 0; d < last; ++d) p += at[static_cast<size_t>(d)] * strides[d] * size;
    if (strides[last] == 1) {
      std::memcpy(to, p, static_cast<size_t>(n * size));
    } else {
      for (int64_t i = 0; i < n; ++i)
        std::memcpy(to + i * size, p + i * step, static_cast<size_t>(size));
    }
    to += n * size;
    for (int d = last - 1; d >= 0 && ++at[static_cast<size_t>(d)] == shape[d]; --d)
      at[static_cast<size_t>(d)] = 0;
  }
}

// On a GPU all that lies between the first and the last element is copied, then put in order.
Tensor copied_on_gpu(const void* data, const Shape& shape, const Shape& strides, Dtype dtype,
                     Device device, const std::string& what) {
  const Reach reach = reach_of(shape, strides, what);
  require(reach.from == 0, what, " has strides ", strides,
          "; on a GPU none may be negative: make it contiguous");
  const Tensor all = empty({reach.to + 1}, dtype, device);
  backend(device).copy(all.raw(), data, static_cast<size_t>((reach.to + 1) * size_of(dtype)),
                       current_stream(device));
  return all.as_strided(shape, strides, 0).contiguous();
}

void let_go(DLManagedTensor* self) { delete static_cast<Exported*>(self->manager_ctx); }

}  // namespace

int type_of(const DLDevice& device) {
  int type = 0;
  static_assert(sizeof type == sizeof device.device_type);
  std::memcpy(&type, &device.device_type, sizeof type);
  return type;
}

Tensor tensor_from(const DLTensor& from, const std::string& what) {
  require(from.ndim >= 0 && from.ndim <= Shape::kMax, what, " has ", from.ndim,
          " dimensions; expected 0 to ", Shape::kMax);
  require(from.ndim == 0 || from.shape, what, " has no shape");
  Shape shape, strides;
  for (int i = 0; i < from.ndim; ++i) {
    require(from.shape[i] >= 0, what, ": size ", from.shape[i], " of dimension ", i,
            "; expected 0 or more");
    shape.append(from.shape[i]);
    strides.append(from.strides ? from.strides[i] : 0);
  }
  const Dtype dtype = dtype_from(from.dtype, what);
  const Device device = device_from(from.device, what);
  const Tensor to = empty(shape, dtype, device);
  if (shape.numel() == 0) return to;
  require(from.data, what, " has no data");
  const std::byte* data = static_cast<const std::byte*>(from.data) + from.byte_offset;
  const Shape& order = from.strides ? strides : to.strides();
  if (device.is_cuda() && !(order == to.strides()))
    return copied_on_gpu(data, shape, order, dtype, device, what);
  if (device.is_cuda() || shape.dims() == 0 || order == to.strides()) {
    backend(device).copy(to.raw(), data, static_cast<size_t>(shape.numel() * size_of(dtype)),
                         current_stream(device));
    return to;
  }
  reach_of(shape, order, what);
  gather(static_cast<std::byte*>(to.raw()), data, shape, order, size_of(dtype));
  return to;
}

Exported::Exported(const Tensor& tensor)
    : tensor_(tensor.contiguous()), shape_(tensor_.shape()), strides_(tensor_.strides()) {
  DLTensor& t = managed_.dl_tensor;
  t.data = tensor_.raw();
  t.device = {tensor_.device().is_cuda() ? kDLCUDA : kDLCPU, tensor_.device().index};
  t.ndim = tensor_.dims();
  t.dtype = dtype_of(tensor_.dtype());
  t.shape = const_cast<int64_t*>(shape_.begin());
  t.strides = const_cast<int64_t*>(strides_.begin());
  managed_.manager_ctx = this;
  managed_.deleter = let_go;
}

DLManagedTensor* Exported::managed() const {
  return &std::make_unique<Exported>(tensor_).release()->managed_;
}

}  // namespace weft::library
