// The CUDA device behind core/device.h. The runtime is linked statically and finds the driver by
// itself, so that the program starts where there is none.
#include "core/cuda.cuh"

#include <array>
#include <memory>
#include <mutex>

namespace weft {
namespace {

constexpr int kLeastArch =
    80;  // CMakeLists.txt: code for 8.0 and 9.0, and PTX for what comes after
#ifdef WEFT_HAS_SM90A
constexpr bool kHasHopperCode = true;
#else
constexpr bool kHasHopperCode = false;
#endif

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index) : index_(index) {
    const std::string why = why_no_cuda(index);
    require(why.empty(), "device cuda:", index, ": ", why);
    use();
    int major = 0, minor = 0;
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    cuda_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, index));
    arch = kHasHopperCode && major == 9 && minor == 0 ? 90 : kLeastArch;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }

  void* allocate(size_t bytes) override {
    use();
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it is handled: not to be met by the next check
      return nullptr;
    }
    cuda_check(status);
    return data;
  }
  void release(void* data, size_t) override {
    use();
    cudaFree(data);  // waits for the device, so no kernel still reads it
  }
  void copy(void* to, const void* from, size_t bytes, Stream s) override {
    use();
    if (!bytes) return;
    require(!recording(s) || (known(to) && known(from)),
            "a copy from or to the host's own memory cannot be recorded");
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle(s)));
  }
  void fill(void* to, int byte, size_t bytes, Stream s) override {
    use();
    if (bytes) cuda_check(cudaMemsetAsync(to, byte, bytes, handle(s)));
  }
  void synchronize(Stream s) override {
    use();
    require(!recording(s), "a wait for the device cannot be recorded");
    cuda_check(cudaStreamSynchronize(handle(s)));
  }

  int64_t memory() const override {
    use();
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(total);
  }

  cudaStream_t handle(Stream s) const {
    return s.handle ? static_cast<cudaStream_t>(s.handle) : stream;
  }
  void use() const {
    thread_local int current = -1;
    if (current == index_) return;
    cuda_check(cudaSetDevice(index_));
    current = index_;
  }

  int arch = 0, sms = 0;
  cudaStream_t stream = nullptr;

 private:
  bool recording(Stream s) const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cuda_check(cudaStreamIsCapturing(handle(s), &status));
    return status != cudaStreamCaptureStatusNone;
  }
  // Memory of a GPU, or pinned.
  static bool known(const void* p) {
    cudaPointerAttributes a{};
    return cudaPointerGetAttributes(&a, p) == cudaSuccess && a.type != cudaMemoryTypeUnregistered;
  }

  int index_;
};

CudaBackend& backend_of(int index) {
  static std::mutex mutex;
  // Never destroyed: the driver may be gone before us at the program's end.
  static auto* const all = new std::array<std::unique_ptr<CudaBackend>, 64>;
  const std::lock_guard lock(mutex);
  auto& one = all->at(static_cast<size_t>(index));
  if (!one) one = std::make_unique<CudaBackend>(index);
  return *one;
}

}  // namespace

int cuda_device_count() {
  static const int count = [] {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
  }();
  return count;
}

std::string why_no_cuda(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
      return "no NVIDIA driver is installed; use --device cpu, or install the driver";
    return concat("the NVIDIA driver supports CUDA ", driver / 1000, ".", driver % 1000 / 10,
                  ", this program needs ", runtime / 1000, ".", runtime % 1000 / 10,
                  "; update the driver, or use --device cpu");
  }
  if (status != cudaSuccess && status != cudaErrorNoDevice)
    return concat("CUDA does not start: ", cudaGetErrorString(status), "; use --device cpu");
  if (count == 0) return "there is no NVIDIA GPU; use --device cpu";
  if (index >= count)
    return concat("there are ", count, " GPUs, numbered from cuda:0 to cuda:", count - 1);
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess)
    return "its properties cannot be read; use --device cpu";
  if (10 * properties.major + properties.minor < kLeastArch)
    return concat(properties.name, " has compute capability ", properties.major, ".",
                  properties.minor, ", this program needs 8.0 or newer; use --device cpu");
  return "";
}

Backend& cuda_backend(int index) { return backend_of(index); }

void cuda_check(cudaError_t status, std::source_location place) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  fail("CUDA: ", cudaGetErrorString(status), " (", place.file_name(), ":", place.line(), ")");
}

void check_launch(const char* what) {
  const cudaError_t status = cudaGetLastError();
  require(status == cudaSuccess, "CUDA: ", what, ": ", cudaGetErrorString(status));
}

void allow_shared_memory(const void* kernel, int64_t bytes) {
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status == cudaErrorInvalidValue) {
    cudaGetLastError();
    int device = 0, most = 0;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    fail("CUDA: this GPU has no kernel for this size: one takes ", bytes,
         " bytes of shared memory a block, of which it has ", most,
         "; use smaller heads, the other dtype or --device cpu");
  }
  cuda_check(status);
}

cudaStream_t cuda_stream(Device device) {
  const CudaBackend& b = backend_of(device.index);
  b.use();
  return b.handle(current_stream(device));
}
int cuda_arch(Device device) { return backend_of(device.index).arch; }
int cuda_sms(Device device) { return backend_of(device.index).sms; }

}  // namespace weft
