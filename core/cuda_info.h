// What there is of CUDA on this machine and in this program: told by `weft doctor`. Nothing here
// throws, and nothing needs a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

struct GpuInfo {
  std::string name;
  int64_t memory = 0;  // bytes
  int arch = 0;        // 90 for compute capability 9.0
  int sms = 0;         // streaming multiprocessors
};

struct CudaInfo {
  std::string architectures;   // the program's machine code, as CMake names it: "80 90a-real"
  int toolkit = 0;             // 13000 for CUDA 13.0; 0 where the program was built without
  int driver = 0;              // the newest CUDA that the driver supports; 0: no driver
  std::string driver_version;  // "580.82.07"; empty where it cannot be told
  std::vector<GpuInfo> gpus;
};
CudaInfo cuda_info();

// Does a GPU of that compute capability run code for `architectures`? "90a": machine code for 9.0
// alone; "80": for 8.x, and by PTX for all newer ones; "80-real", "80-virtual": one of the two.
bool runs_on(const std::string& architectures, int arch);

// 13000 as "13.0".
std::string cuda_version_text(int version);

}  // namespace weft
