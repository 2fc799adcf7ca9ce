// Tensors: a cheap handle on shared, counted memory with a shape and strides.
//   - Up to 6 dimensions; all sizes, strides and offsets are 64-bit, counted in elements.
//   - A view (slice, transpose, ...) shares memory with its source; clone() does not.
//   - A default-made Tensor is "absent": that is how optional inputs are left out.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <vector>

#include "core/allocator.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"

namespace weft {

// Sizes of a tensor, slowest first. A scalar has none.
class Shape {
 public:
  static constexpr int kMax = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  explicit Shape(const std::vector<int64_t>& sizes);

  int dims() const { return dims_; }
  // Negative indices count from the end, as everywhere in Tensor.
  int64_t operator[](int i) const { return sizes_[static_cast<size_t>(i < 0 ? i + dims_ : i)]; }
  int64_t& operator[](int i) { return sizes_[static_cast<size_t>(i < 0 ? i + dims_ : i)]; }
  int64_t numel() const;
  void append(int64_t size);
  bool operator==(const Shape& other) const;
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + dims_; }

 private:
  std::array<int64_t, kMax> sizes_{};
  int dims_ = 0;
};

// Prints "[2, 65, 3, 16]".
std::ostream& operator<<(std::ostream& out, const Shape& shape);

// Memory that tensors share. `version` counts writes, so that the tape sees a saved tensor changed.
class Storage {
 public:
  Storage(Device device, int64_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(block_.data); }
  Device device() const { return device_; }
  int64_t bytes() const { return block_.bytes; }

  uint64_t version = 0;

 private:
  Device device_;
  Allocator::Block block_;
};

class Tensor {
 public:
  Tensor() = default;

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }

  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int dims() const { return shape_.dims(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }
  int64_t numel() const { return shape_.numel(); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : kCpu; }
  bool is_meta() const { return device().is_meta(); }
  bool is_contiguous() const;
  // The same memory, offset, shape and strides.
  bool same_view(const Tensor& other) const;
  bool shares_memory(const Tensor& other) const { return storage_ && storage_ == other.storage_; }
  // How many tensors share the memory.
  long use_count() const { return storage_.use_count(); }
  uint64_t version() const { return storage_ ? storage_->version : 0; }
  // Whoever writes to memory that others may hold says so.
  void mark_written() const {
    if (storage_) ++storage_->version;
  }

  // First element. The type must be the tensor's; a meta tensor gives null.
  template <class T>
  T* data() const {
    require(!defined() || dtype_of<T>() == dtype_, "tensor is ", dtype_, ", read as ",
            dtype_of<T>());
    if (!defined() || !storage_->data()) return nullptr;
    return reinterpret_cast<T*>(storage_->data()) + offset_;
  }
  void* raw() const;

  // Views. They throw Error where the strides do not allow them.
  Tensor reshape(const Shape& shape) const;  // one size may be -1; copies only if it must
  Tensor transpose(int a, int b) const;
  Tensor slice(int dim, int64_t begin, int64_t end) const;
  Tensor select(int dim, int64_t index) const;  // drops the dimension
  Tensor unsqueeze(int dim) const;              // adds a dimension of size 1
  Tensor expand(int dim, int64_t size) const;   // repeats a dimension of size 1, stride 0
  Tensor as_strided(const Shape& shape, const Shape& strides, int64_t offset) const;

  Tensor contiguous() const;  // itself where it is contiguous already
  Tensor clone() const;       // a contiguous copy
  Tensor to(Dtype dtype) const;
  Tensor to(Device device) const;

  // In place. copy_from casts and takes any strides; shapes must be equal.
  void copy_from(const Tensor& source) const;
  void zero() const;
  void fill(double value) const;
  // this += source: one float type, or bf16 into f32.
  void add_from(const Tensor& source) const;

  // One number of a tensor with one element.
  double item() const;

 private:
  friend Tensor empty(const Shape&, Dtype, Device);
  std::shared_ptr<Storage> storage_;
  Shape shape_, strides_;
  int64_t offset_ = 0;  // in elements
  Dtype dtype_ = Dtype::f32;
};

Tensor empty(const Shape& shape, Dtype dtype, Device device = kCpu);
Tensor zeros(const Shape& shape, Dtype dtype, Device device = kCpu);
Tensor full(const Shape& shape, double value, Dtype dtype, Device device = kCpu);
inline Tensor empty_like(const Tensor& t) { return empty(t.shape(), t.dtype(), t.device()); }
inline Tensor zeros_like(const Tensor& t) { return zeros(t.shape(), t.dtype(), t.device()); }

// A 1-D (or shaped) CPU tensor of given numbers.
template <class T>
Tensor tensor_of(const std::vector<T>& values) {
  const Tensor t = empty({static_cast<int64_t>(values.size())}, dtype_of<T>());
  std::copy(values.begin(), values.end(), t.template data<T>());
  return t;
}

// The numbers in row-major order as doubles; for tests, files and reports.
std::vector<double> to_doubles(const Tensor& t);
std::vector<int64_t> to_ints(const Tensor& t);

// A pointer with sizes and strides, for loops: v(i, j, k). Absent tensors give an empty view.
template <class T>
struct View {
  T* data = nullptr;
  std::array<int64_t, Shape::kMax> sizes{}, strides{};
  int dims = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t size(int dim) const { return sizes[static_cast<size_t>(dim < 0 ? dim + dims : dim)]; }
  int64_t stride(int dim) const { return strides[static_cast<size_t>(dim < 0 ? dim + dims : dim)]; }

  template <class... I>
  T* at(I... index) const {
    T* p = data;
    size_t d = 0;
    ((p += static_cast<int64_t>(index) * strides[d++]), ...);
    return p;
  }
  template <class... I>
  T& operator()(I... index) const {
    return *at(index...);
  }
};

template <class T>
View<T> view(const Tensor& t) {
  View<T> v;
  if (!t.defined()) return v;
  v.data = t.data<std::remove_cv_t<T>>();
  v.dims = t.dims();
  for (int i = 0; i < t.dims(); ++i) {
    v.sizes[static_cast<size_t>(i)] = t.size(i);
    v.strides[static_cast<size_t>(i)] = t.stride(i);
  }
  return v;
}

}  // namespace weft
