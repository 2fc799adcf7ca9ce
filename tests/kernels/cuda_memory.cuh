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

template <class Real>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<Real>& host) : size_(host.size()) {
    REQUIRE(cudaMalloc(&data_, size_ * sizeof(Real)) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, host.data(), size_ * sizeof(Real), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  OnGpu(const OnGpu&) = delete;
  ~OnGpu() { cudaFree(data_); }
  Real* data() const { return data_; }
  std::vector<Real> host() const {
    std::vector<Real> host(size_);
    REQUIRE(cudaMemcpy(host.data(), data_, size_ * sizeof(Real), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    return host;
  }

 private:
  size_t size_;
  Real* data_ = nullptr;
};

inline float number(float x) { return x; }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

// Numbers of unit variance, rounded to T.
template <class Real>
std::vector<Real> normal(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<Real> x(count);
  for (Real& v : x) v = Real(distribution(random));
  return x;
}

}  // namespace weft::tests
