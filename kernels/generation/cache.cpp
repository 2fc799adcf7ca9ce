#include "kernels/generation/cache.h"

namespace weft::kernels {

void put_row(const Tensor& ring, const Tensor& row_in, const Tensor& position) {
  const Tensor row = row_in.contiguous();
  const int64_t S = ring.size(1);
  require(ring.is_contiguous() && row.dtype() == ring.dtype() && ring.size(0) == 1 &&
              row.numel() * S == ring.numel(),
          "put_row: ", row.dtype(), " ", row.shape(), " into ", ring.dtype(), " ", ring.shape());
  ring.mark_written();
  if (ring.is_meta()) return;
  if constexpr (has_cuda)
    if (ring.device().is_cuda()) return cuda_put_row(ring, row, position);
  const int64_t at = *position.data<int32_t>() % S;
  ring.slice(1, at, at + 1).reshape({row.numel()}).copy_from(row.reshape({row.numel()}));
}

void copy_all(const std::vector<Copy>& list) {
  if (list.empty()) return;
  for (const Copy& c : list) {
    require(c.to.is_contiguous() && c.from.is_contiguous() && c.to.dtype() == c.from.dtype() &&
                c.to.shape() == c.from.shape(),
            "copy_all: ", c.from.dtype(), " ", c.from.shape(), " to ", c.to.dtype(), " ",
            c.to.shape());
    c.to.mark_written();
  }
  if (list[0].to.is_meta()) return;
  if constexpr (has_cuda)
    if (list[0].to.device().is_cuda()) return cuda_copy_all(list);
  for (const Copy& c : list) c.to.copy_from(c.from);
}

}  // namespace weft::kernels
