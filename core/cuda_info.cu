#include "core/cuda_info.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <fstream>
#include <regex>

#include "core/device.h"

namespace weft {

CudaInfo cuda_info() {
  CudaInfo info;
  info.architectures = WEFT_CUDA_ARCHITECTURES;  // "80/90a-real"
  std::replace(info.architectures.begin(), info.architectures.end(), '/', ' ');
  info.toolkit = CUDART_VERSION;
  if (cudaDriverGetVersion(&info.driver) != cudaSuccess) info.driver = 0;
  std::ifstream version("/proc/driver/nvidia/version");
  std::smatch found;
  for (std::string line; std::getline(version, line) && info.driver_version.empty();)
    if (std::regex_search(line, found, std::regex("([0-9]+\\.[0-9.]+)")))
      info.driver_version = found[1];
  for (int i = 0; i < cuda_device_count(); ++i) {
    cudaDeviceProp p{};
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    info.gpus.push_back({p.name, static_cast<int64_t>(p.totalGlobalMem), 10 * p.major + p.minor,
                         p.multiProcessorCount});
  }
  return info;
}

}  // namespace weft
