// A stable sort of positions by a small key, on the GPU: what gathers, scatters and experts need to
// visit rows in one order whoever runs first.
#pragma once

#include "core/cuda.cuh"

namespace weft::kernels {

// Positions 0 .. n - 1 sorted by key, equal keys in rising position. The memory goes by n and
// `limit`.
class SortByKey {
 public:
  // keys lie in 0 .. limit - 1
  SortByKey(int64_t n, int64_t limit, Device device);

  // keys: i32 [n] on the device. Not for a meta device.
  void run(const int32_t* keys) const;

  const int32_t* keys() const { return dptr<int32_t>(keys_[passes_ % 2]); }  // [n], rising
  const int32_t* positions() const { return dptr<int32_t>(positions_[passes_ % 2]); }  // [n]

 private:
  int64_t n_;
  int passes_;
  Device device_;
  Tensor keys_[2], positions_[2];  // i32 [n]; passes write them by turns
  Tensor counts_;                  // i32 [tiles, 256]
};

// starts[k] = how many of the rising keys [n] are below k, for k = 0 .. limit.
template <class Index>
void starts_of(const int32_t* keys, int64_t n, int64_t limit, Index* starts, Device device);

}  // namespace weft::kernels
