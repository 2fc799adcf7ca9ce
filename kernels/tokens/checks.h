// What the checks of mechanisms with heads and a state have in common: shapes, told as they are and
// as they should be.
#pragma once

#include <string_view>

#include "core/tensor.h"

namespace weft::kernels {

// Throws Error unless `t` is absent or has that shape.
inline void check_shape(std::string_view name, const char* field, const Tensor& t,
                        const Shape& shape) {
  require(!t || t.shape() == shape, name, ": ", field, " has shape ", t.shape(), ", expected ",
          shape);
}

// The sizes of a call: H value heads of width V share Hk key heads of width K.
struct HeadShape {
  int64_t B, T, Hk, H, K, V;
};

// Throw Error unless q and k are [B, T, Hk, K] and v is [B, T, H, V], none of them empty and H a
// multiple of Hk. The first takes B and T from v and names what differs in k; the second takes them
// from q.
inline HeadShape check_heads_as_v(std::string_view name, const Tensor& q, const Tensor& k,
                                  const Tensor& v) {
  require(v.dims() == 4 && v.numel() > 0, name, ": v has shape ", v.shape(),
          ", expected [B, T, H, V], none of them 0");
  const int64_t B = v.size(0), T = v.size(1), H = v.size(2);
  require(k.dims() == 4 && k.size(0) == B && k.size(1) == T && k.numel() > 0, name,
          ": k has shape ", k.shape(), ", expected [", B, ", ", T, ", Hk, K] for v ", v.shape());
  const int64_t Hk = k.size(2);
  require(H % Hk == 0, name, ": k has ", Hk, " heads, v has ", H, "; expected a divisor of that");
  require(q.shape() == k.shape(), name, ": q has shape ", q.shape(), ", expected ", k.shape(),
          " as k");
  return {B, T, Hk, H, k.size(3), v.size(3)};
}
inline HeadShape check_heads_as_q(std::string_view name, const Tensor& q, const Tensor& k,
                                  const Tensor& v) {
  require(q.dims() == 4, name, ": q has shape ", q.shape(), ", expected [B, T, Hk, K]");
  require(v.dims() == 4, name, ": v has shape ", v.shape(), ", expected [B, T, H, V]");
  const int64_t B = q.size(0), T = q.size(1), Hk = q.size(2), H = v.size(2);
  require(q.numel() > 0 && v.numel() > 0, name, ": q has shape ", q.shape(), ", v ", v.shape(),
          "; every size must be at least 1");
  require(k.shape() == q.shape(), name, ": k has shape ", k.shape(), ", expected ", q.shape(),
          " as q");
  require(v.size(0) == B && v.size(1) == T, name, ": v has shape ", v.shape(), ", expected [", B,
          ", ", T, ", H, V] for q ", q.shape());
  require(H % Hk == 0, name, ": v has ", H, " heads, expected a multiple of the ", Hk,
          " heads of k");
  return {B, T, Hk, H, q.size(3), v.size(3)};
}

}  // namespace weft::kernels
