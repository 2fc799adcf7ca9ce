// What the tests of kernels/basic share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "kernels/contract/operation.h"
#include "tests/catch.h"
#include "tests/gap.h"

namespace weft::kernels::basic {

template <class M>
struct Result {
  Outputs<M> y;
  Inputs<M> dx;
};

// Forward and backward in the form that trains, with random output gradients unless some are given.
template <class M>
Result<M> run(const Inputs<M>& x, const Options<M>& o, Outputs<M> dy = {}) {
  typename M::Saved saved;
  Result<M> r{forward<M>(x, o, &saved), {}};
  const bool given = std::get<0>(dy.fields()).defined();
  uint64_t seed = 100;
  if (!given)
    for_fields(
        [&](Tensor& d, const Tensor& y) {
          if (y) d = normal(y.shape(), ++seed, "dy").to(y.dtype());
        },
        dy, r.y);
  Inputs<M, bool> wanted;
  for_fields([](bool& want) { want = true; }, wanted);
  r.dx = backward<M>(x, o, saved, dy, wanted);
  return r;
}

// max |a - b| / max(1, max |b|); shapes must be equal.
inline double difference(const Tensor& a, const Tensor& b) { return tests::gap(a, b).relative(1); }

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         (a.numel() == 0 || std::memcmp(a.contiguous().raw(), b.contiguous().raw(),
                                        static_cast<size_t>(a.numel() * size_of(a.dtype()))) == 0);
}

// The result does not change with the number of threads.
template <class M>
void check_threads(const Inputs<M>& x, const Options<M>& o) {
  const int before = thread_count();
  omp_set_num_threads(1);
  Result<M> one = run<M>(x, o);
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    Result<M> r = run<M>(x, o);
    INFO(M::name << " with " << threads << " threads");
    const auto check = [](const Tensor& a, const Tensor& b) {
      if (a) CHECK(same_bits(a, b));
    };
    for_fields(check, one.y, r.y);
    for_fields(check, one.dx, r.dx);
  }
  omp_set_num_threads(before);
}

// A tensor in f32, for sizes at which work is cut into many pieces.
inline Tensor f32(const Shape& shape, const std::string& name) {
  return normal(shape, 11, name).to(Dtype::f32);
}

inline Tensor ints(const std::vector<int32_t>& values) { return tensor_of(values); }

}  // namespace weft::kernels::basic
