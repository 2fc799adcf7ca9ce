// `weft bench`: operations timed over a ladder of lengths, f32, forward and forward + backward,
// beside our own dense attention and beside the machine: its matrix-product and copy rates are
// measured in the same run, and no operation can be faster than its products and its bytes at those
// rates.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace weft::train {

struct BenchArguments {
  std::vector<std::string> names;    // operations; none: the mechanisms
  std::vector<int64_t> lengths;      // none: 512 to 8192
  std::vector<std::string> set;      // "window=512": options of the operation
  std::vector<std::string> without;  // optional inputs that its benchmark would have
  std::string device = "cpu";        // cuda: the kernel table of train/workbench/bench_cuda.h
  std::string peers;                 // cuda: a file of a peer's times
  double budget = 0.5;               // seconds of repeats a figure, at least three repeats
  bool json = false;                 // a JSON object a line, as they come
};

struct MachineRates {
  double flops = 0;  // a second, of a large f32 matrix product on all threads
  double bytes = 0;  // a second, read plus written, of a copy that no cache holds
};
MachineRates measure_machine(double budget);

// One operation at one length.
struct BenchRow {
  std::string name;  // "attention window=512"
  int64_t length = 0;
  double forward = 0, both = 0;  // seconds, median
  double best_forward = 0;       // the fastest repeats
  double best = 0;               // of forward + backward: ratios are of these, which other
                                 // programs on the machine disturb least
  int64_t memory = 0;            // peak of forward + backward beyond the inputs, bytes
  double least = 0;              // seconds that forward + backward take at the machine's rates
  // Against the row of half the length and against dense attention of this length; 0: there is
  // none.
  double time_ratio = 0, memory_ratio = 0, attention_ratio = 0;
};
std::vector<BenchRow> bench(const BenchArguments& arguments, const MachineRates& rates,
                            std::ostream* json_lines);

int run_bench(const BenchArguments& arguments, std::ostream& out);

}  // namespace weft::train
