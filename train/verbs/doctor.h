// `weft doctor`: what this program was built with and what this machine has, a line each, with what
// to do where something is missing.
#pragma once

#include <ostream>
#include <string>

namespace weft::train {

struct DoctorArguments {
  std::string device;        // asked for: "cuda", "cuda:1", "cpu"; empty: nothing is
  std::string out = "runs";  // where checkpoints would go
};

// 2 where the device that was asked for cannot work, else 0.
int run_doctor(const DoctorArguments& arguments, std::ostream& out);

}  // namespace weft::train
