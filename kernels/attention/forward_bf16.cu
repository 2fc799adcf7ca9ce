// Forward through the tile layer in bf16.
#include "kernels/attention/forward_tiles.cuh"

namespace weft::kernels::attention {

using namespace softmax;

template void forward_on_tiles(const Call<bf16>&, const Band&, const Parts&, const Heads<bf16>&,
                               float*, const int*);

}  // namespace weft::kernels::attention
