// Forward through the tile layer in f32.
#include "kernels/attention/forward_tiles.cuh"

namespace weft::kernels::attention {

using namespace softmax;

template void forward_on_tiles(const Call<float>&, const Band&, const Parts&, const Heads<float>&,
                               float*, const int*);

}  // namespace weft::kernels::attention
