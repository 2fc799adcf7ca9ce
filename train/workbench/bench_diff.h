// Two saved benchmarks side by side: what became faster, what slower.
#pragma once

#include <ostream>
#include <string>

namespace weft::train {

// `before` and `after` are files of `weft bench --json`, of the CPU or of a GPU. Rows meet by name
// and length; rows of one file alone are told, and so are two machines that differ. Throws Error
// where a file is none, or where no row meets another.
int run_bench_diff(const std::string& before, const std::string& after, bool json,
                   std::ostream& out);

}  // namespace weft::train
