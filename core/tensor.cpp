// Tensor views, copies and casts; the loops are the CPU's, a GPU's are in tensor_cuda.cu. Meta
// tensors follow shapes and stop before any loop.
#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/mirror.h"
#include "core/parallel.h"
#include "core/sizes.h"
#include "core/tensor_cuda.h"

namespace weft {
namespace {

constexpr int64_t kGrain = 1 << 14;

int wrap(int dim, int dims, const char* what) {
  const int d = dim < 0 ? dim + dims : dim;
  require(d >= 0 && d < dims, what, ": dimension ", dim, " of a tensor with ", dims);
  return d;
}

Shape row_major(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.dims() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

// Calls f(element offset of a, of b, run length, stride of a, of b) for each innermost run.
template <class F>
void for_runs(const Shape& shape, const Shape& a, const Shape& b, const F& f) {
  if (shape.numel() == 0) return;
  if (shape.dims() == 0) return f(int64_t{0}, int64_t{0}, int64_t{1}, int64_t{1}, int64_t{1});
  const int last = shape.dims() - 1;
  int64_t outer = 1;
  for (int i = 0; i < last; ++i) outer *= shape[i];
  parallel_ranges(outer, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, shape[last])),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t row = begin; row < end; ++row) {
                      int64_t rest = row, at_a = 0, at_b = 0;
                      for (int i = last - 1; i >= 0; --i) {
                        at_a += rest % shape[i] * a[i];
                        at_b += rest % shape[i] * b[i];
                        rest /= shape[i];
                      }
                      f(at_a, at_b, shape[last], a[last], b[last]);
                    }
                  });
}

template <class To, class From>
To cast(From value) {
  if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<From, bf16>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

// What a tensor of this shape takes. Throws Error, TooMany where it is more than any memory.
int64_t bytes_wanted(const Shape& shape, Dtype dtype) {
  for (const int64_t size : shape)
    require(size >= 0, current_owner(), ": a tensor of shape ", shape, " cannot be made");
  try {
    return bytes_of(shape, dtype);
  } catch (const TooMany&) {
    throw TooMany(concat(current_owner(), ": a tensor of shape ", shape, " in ", dtype,
                         " is larger than any memory; a size in the recipe, an option or a file is "
                         "too large"));
  }
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> sizes) {
  for (const int64_t s : sizes) append(s);
}
Shape::Shape(const std::vector<int64_t>& sizes) {
  for (const int64_t s : sizes) append(s);
}
void Shape::append(int64_t size) {
  require(dims_ < kMax, "a tensor has at most ", kMax, " dimensions");
  sizes_[static_cast<size_t>(dims_++)] = size;
}
int64_t Shape::numel() const {
  int64_t n = 1;
  bool none = false, fits = true;
  for (const int64_t s : *this) {
    none |= s == 0;
    if (s != 0) fits &= !__builtin_mul_overflow(n, s, &n);
  }
  if (!fits) [[unlikely]]
    too_many(concat("elements of a tensor of shape ", *this));
  return none ? 0 : n;
}
bool Shape::operator==(const Shape& other) const {
  return dims_ == other.dims_ && std::equal(begin(), end(), other.begin());
}
std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.dims(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ']';
}

Storage::Storage(Device device, int64_t bytes)
    : device_(device), block_(allocator(device).allocate(bytes)) {}
Storage::~Storage() { allocator(device_).release(block_); }

Tensor empty(const Shape& shape, Dtype dtype, Device device) {
  Tensor t;
  t.storage_ = std::make_shared<Storage>(device, bytes_wanted(shape, dtype));
  t.shape_ = shape;
  t.strides_ = row_major(shape);
  t.dtype_ = dtype;
  return t;
}

Tensor zeros(const Shape& shape, Dtype dtype, Device device) {
  const Tensor t = empty(shape, dtype, device);
  t.zero();
  return t;
}

Tensor full(const Shape& shape, double value, Dtype dtype, Device device) {
  const Tensor t = empty(shape, dtype, device);
  t.fill(value);
  return t;
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (int i = dims() - 1; i >= 0; --i) {
    if (size(i) != 1 && stride(i) != step) return false;
    step *= size(i);
  }
  return true;
}

bool Tensor::same_view(const Tensor& other) const {
  return storage_ == other.storage_ && offset_ == other.offset_ && shape_ == other.shape_ &&
         strides_ == other.strides_ && dtype_ == other.dtype_;
}

void* Tensor::raw() const {
  if (!defined() || !storage_->data()) return nullptr;
  return storage_->data() + offset_ * size_of(dtype_);
}

Tensor Tensor::reshape(const Shape& wanted) const {
  Shape shape = wanted;
  int64_t known = 1;
  int open = -1;
  for (int i = 0; i < shape.dims(); ++i) {
    if (shape[i] == -1)
      open = i;
    else
      known = times(known, shape[i], "sizes of a reshape");
  }
  if (open >= 0 && known > 0) shape[open] = numel() / known;
  require(shape.numel() == numel(), "reshape: ", shape_, " has ", numel(), " elements, ", wanted,
          " asks for ", shape.numel());
  if (shape == shape_) return *this;
  Tensor t = contiguous();
  t.shape_ = shape;
  t.strides_ = row_major(shape);
  return t;
}

Tensor Tensor::transpose(int a, int b) const {
  a = wrap(a, dims(), "transpose");
  b = wrap(b, dims(), "transpose");
  Tensor t = *this;
  std::swap(t.shape_[a], t.shape_[b]);
  std::swap(t.strides_[a], t.strides_[b]);
  return t;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  dim = wrap(dim, dims(), "slice");
  require(0 <= begin && begin <= end && end <= size(dim), "slice: ", begin, "..", end,
          " of dimension ", dim, " of ", shape_);
  Tensor t = *this;
  t.offset_ += begin * stride(dim);
  t.shape_[dim] = end - begin;
  return t;
}

Tensor Tensor::select(int dim, int64_t index) const {
  dim = wrap(dim, dims(), "select");
  const Tensor t = slice(dim, index, index + 1);
  Shape shape, strides;
  for (int i = 0; i < dims(); ++i) {
    if (i == dim) continue;
    shape.append(size(i));
    strides.append(stride(i));
  }
  return t.as_strided(shape, strides, 0);
}

Tensor Tensor::unsqueeze(int dim) const {
  dim = dim < 0 ? dim + dims() + 1 : dim;
  Shape shape, strides;
  for (int i = 0; i <= dims(); ++i) {
    if (i == dim) {
      shape.append(1);
      strides.append(0);
    }
    if (i == dims()) break;
    shape.append(size(i));
    strides.append(stride(i));
  }
  return as_strided(shape, strides, 0);
}

Tensor Tensor::expand(int dim, int64_t size) const {
  dim = wrap(dim, dims(), "expand");
  require(shape_[dim] == 1, "expand: dimension ", dim, " of ", shape_, " is not 1");
  Tensor t = *this;
  t.shape_[dim] = size;
  t.strides_[dim] = 0;
  return t;
}

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides, int64_t offset) const {
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = strides;
  t.offset_ += offset;
  return t;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  const Tensor t = empty(shape_, dtype_, device());
  t.copy_from(*this);
  return t;
}

Tensor Tensor::to(Dtype dtype) const {
  if (dtype == dtype_) return *this;
  const Tensor t = empty(shape_, dtype, device());
  t.copy_from(*this);
  return t;
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
  if (Tensor copy = mirror_of(*this, target)) return copy;
  const Tensor source = contiguous();
  const Tensor t = empty(shape_, dtype_, target);
  if (target.is_meta() || device().is_meta()) return t;
  // The GPU's side knows the order of the copy; numbers that reach the CPU are there on return.
  const Device orders = target.is_cpu() ? device() : target;
  backend(orders).copy(t.raw(), source.raw(), static_cast<size_t>(numel() * size_of(dtype_)),
                       current_stream(orders));
  if (target.is_cpu()) backend(orders).synchronize(current_stream(orders));
  return t;
}

void Tensor::copy_from(const Tensor& source) const {
  require(shape_ == source.shape_, "copy: ", source.shape_, " into ", shape_);
  mark_written();
  if (is_meta() || source.is_meta()) return;
  if (source.device() != device()) return copy_from(source.to(device()));
  if (dtype_ == source.dtype_ && is_contiguous() && source.is_contiguous())
    return backend(device()).copy(raw(), source.raw(),
                                  static_cast<size_t>(numel() * size_of(dtype_)),
                                  current_stream(device()));
  if constexpr (has_cuda)
    if (device().is_cuda()) return cuda_copy(*this, source);
  for_dtype(dtype_, [&]<class To>() {
    for_dtype(source.dtype_, [&]<class From>() {
      To* const to = data<To>();
      const From* const from = source.data<From>();
      for_runs(shape_, strides_, source.strides_,
               [&](int64_t a, int64_t b, int64_t n, int64_t step_a, int64_t step_b) {
                 for (int64_t i = 0; i < n; ++i)
                   to[a + i * step_a] = cast<To>(from[b + i * step_b]);
               });
    });
  });
}

void Tensor::zero() const {
  mark_written();
  if (is_meta()) return;
  if (is_contiguous())
    return backend(device()).fill(raw(), 0, static_cast<size_t>(numel() * size_of(dtype_)),
                                  current_stream(device()));
  fill(0);
}

void Tensor::fill(double value) const {
  mark_written();
  if (is_meta()) return;
  if constexpr (has_cuda)
    if (device().is_cuda()) return cuda_fill(*this, value);
  for_dtype(dtype_, [&]<class T>() {
    T* const to = data<T>();
    const T number = cast<T>(value);
    for_runs(shape_, strides_, strides_, [&](int64_t a, int64_t, int64_t n, int64_t step, int64_t) {
      for (int64_t i = 0; i < n; ++i) to[a + i * step] = number;
    });
  });
}

void Tensor::add_from(const Tensor& source) const {
  require(shape_ == source.shape_, "add: ", source.shape_, " to ", shape_);
  const bool widens = dtype_ == Dtype::f32 && source.dtype_ == Dtype::bf16;
  require((dtype_ == source.dtype_ && is_float(dtype_)) || widens, "add: ", source.dtype_, " to ",
          dtype_);
  mark_written();
  if (is_meta()) return;
  if constexpr (has_cuda)
    if (device().is_cuda()) return cuda_add(*this, source);
  if (widens) return add_from(source.to(Dtype::f32));
  for_dtype(dtype_, [&]<class T>() {
    T* const to = data<T>();
    const T* const from = source.data<T>();
    for_runs(shape_, strides_, source.strides_,
             [&](int64_t a, int64_t b, int64_t n, int64_t step_a, int64_t step_b) {
               if (step_a == 1 && step_b == 1)
                 for (int64_t i = 0; i < n; ++i)
                   to[a + i] = static_cast<T>(to[a + i] + from[b + i]);
               else
                 for (int64_t i = 0; i < n; ++i)
                   to[a + i * step_a] = static_cast<T>(to[a + i * step_a] + from[b + i * step_b]);
             });
  });
}

double Tensor::item() const {
  require(numel() == 1, "item: a tensor of shape ", shape_, " is not one number");
  require(!is_meta(), "item: a meta tensor holds no numbers");
  if (!device().is_cpu()) return to(kCpu).item();
  return for_dtype(dtype_, [&]<class T>() { return cast<double>(*data<T>()); });
}

std::vector<double> to_doubles(const Tensor& t) {
  const Tensor d = t.to(kCpu).to(Dtype::f64).contiguous();
  return {d.data<double>(), d.data<double>() + d.numel()};
}

std::vector<int64_t> to_ints(const Tensor& t) {
  const Tensor d = t.to(kCpu).to(Dtype::i64).contiguous();
  return {d.data<int64_t>(), d.data<int64_t>() + d.numel()};
}

}  // namespace weft
