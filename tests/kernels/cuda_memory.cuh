// For tests of device code by itself: an array on the GPU, and whether there is one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <random>
#include <string>
#include <vector>

#include "tests/catch.h"

namespace weft::tests {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// The launches so far ended without an error.
inline void require_success(const char* what) {
  INFO(what);
  REQUIRE(std::string(cudaGetErrorString(cudaGetLastError())) == "no error");
  REQUIRE(std::string(cudaGetErrorString(cudaDeviceSynchronize())) == "no error");
}

template <class T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& host) : size_(host.size()) {
    REQUIRE(cudaMalloc(&data_, size_ * sizeof(T)) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  OnGpu(const OnGpu&) = delete;
  ~OnGpu() { cudaFree(data_); }
  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> host(size_);
    REQUIRE(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    return host;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

inline float number(float x) { return x; }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

// Numbers of unit variance, rounded to T.
template <class T>
std::vector<T> normal(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<T> x(count);
  for (T& v : x) v = T(distribution(random));
  return x;
}

}  // namespace weft::tests
