// `weft bench --device cuda`: the kernel table. Operations on shapes of real models, bf16, timed by
// the call and by replay of a CUDA graph, beside what their bytes and products take at least, at
// the copy and matrix-product rates measured in the same run, and beside a peer's times where a
// file has them (tests/peers/cuda_ops.py writes it).
#pragma once

#include <ostream>

#include "train/workbench/bench.h"

namespace weft::train {

// One operation on one shape, milliseconds. 0: not measured.
struct CudaBenchRow {
  std::string name;  // "attention B4 T4096 H16 K128"
  double forward = 0, forward_graph = 0, both = 0, both_graph = 0;
  double least_forward = 0, least_both = 0;  // at the machine's measured rates
  double teraflops = 0, terabytes = 0;       // a second, of forward + backward by graph
  double peer_forward = 0, peer_both = 0;    // the peer's, by graph where it has that
  std::string peer;
};

int run_cuda_bench(const BenchArguments& arguments, std::ostream& out);

}  // namespace weft::train
