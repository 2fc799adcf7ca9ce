#include "train/verbs/doctor.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "core/cuda_info.h"
#include "core/device.h"
#include "core/error.h"
#include "core/hdf5.h"
#include "core/library.h"
#include "core/parallel.h"
#include "core/units.h"
#include "data/tokenizer.h"
#include "kernels/tile/gemm.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;

constexpr double kLeastFree =
    4.0 * (int64_t{1} << 30);  // bytes; a 124M run keeps 1.4 GiB a checkpoint

// Prints lines, and remembers whether anything failed that the device asked for needs.
class Report {
 public:
  Report(std::ostream& out, bool gpu_asked) : out_(out), gpu_asked_(gpu_asked) {}

  void ok(const std::string& what, const std::string& found) { line("ok", what, found); }
  // What nobody needs unless they want it: `advice` says for what.
  void lacks(const std::string& what, const std::string& advice) { line("missing", what, advice); }
  // What a GPU needs: an error where one was asked for.
  void gpu_lacks(const std::string& what, const std::string& advice) {
    line(gpu_asked_ ? "FAILED" : "missing", what, advice);
    failed_ = failed_ || gpu_asked_;
  }
  bool failed() const { return failed_; }

 private:
  void line(const std::string& state, const std::string& what, const std::string& text) {
    const auto padded = [](std::string s, size_t n) {
      return s + std::string(n - std::min(n, s.size()), ' ');
    };
    out_ << padded(state, 9) << padded(what, 15) << text << "\n";
  }
  std::ostream& out_;
  bool gpu_asked_, failed_ = false;
};

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "processor";
}

std::string vectors() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "no wide vectors";
#endif
}

void check_host(Report& r) {
  r.ok("build", concat("weft ", WEFT_VERSION, ", compiler ", __VERSION__, ", ", vectors()));
  r.ok("cpu", concat(processor(), ", ", thread_count(), " threads"));
  r.ok("hdf5", hdf5_version());
  if (data::has_sentencepiece())
    r.ok("sentencepiece", "built in");
  else
    r.lacks("sentencepiece",
            "bytes are the only vocabulary; for another install "
            "libsentencepiece-dev and build again");
}

// GPU `index` of those there are.
void check_gpu(Report& r, const CudaInfo& cuda, size_t index) {
  const GpuInfo& g = cuda.gpus[index];
  const std::string name = concat("gpu cuda:", index);
  const std::string text =
      concat(g.name, ", ", bytes_text(double(g.memory)), ", ", g.sms,
             " multiprocessors, compute capability ", g.arch / 10, ".", g.arch % 10);
  if (!runs_on(cuda.architectures, g.arch))
    r.gpu_lacks(name, concat(text, "; the build has code for ", cuda.architectures,
                             ": build with -DWEFT_CUDA_ARCHITECTURES=", g.arch));
  else if (const std::string why = why_no_cuda(static_cast<int>(index)); !why.empty())
    r.gpu_lacks(name, concat(text, "; ", why));
  else
    r.ok(name, text);
}

void check_libraries(Report& r) {
  if constexpr (has_cuda) {
    try {
      const std::string version = kernels::cublas_version();  // "13.1.0"
      const std::string file = "libcublasLt.so." + version.substr(0, version.find('.'));
      r.ok("cublaslt", concat(version, ", ", find_library({file})));
    } catch (const Error& e) {
      r.gpu_lacks("cublaslt", e.what());
    }
  }
  const std::string nccl = find_library({"libnccl.so.2", "libnccl.so"});
  if (!nccl.empty())
    r.ok("nccl", nccl);
  else
    r.lacks("nccl",
            "only runs on several GPUs want it; it comes with libnccl2 and with PyTorch's "
            "nvidia-nccl package: name its folder in LD_LIBRARY_PATH");
}

void check_cuda(Report& r, size_t wanted) {
  const CudaInfo cuda = cuda_info();
  if (!has_cuda) return r.gpu_lacks("cuda", why_no_cuda());
  r.ok("cuda", concat("built with CUDA ", cuda_version_text(cuda.toolkit), ", code for ",
                      cuda.architectures));
  const std::string version = cuda.driver_version.empty() ? "" : cuda.driver_version + ", ";
  // Minor versions of one CUDA go together: a program of 13.1 runs on a driver for 13.0.
  if (cuda.driver / 1000 >= cuda.toolkit / 1000)
    r.ok("driver", concat(version, "supports CUDA ", cuda_version_text(cuda.driver)));
  else
    r.gpu_lacks("driver", concat(version, why_no_cuda()));
  for (size_t i = 0; i < cuda.gpus.size(); ++i) check_gpu(r, cuda, i);
  if (cuda.driver / 1000 >= cuda.toolkit / 1000 && wanted >= cuda.gpus.size())
    r.gpu_lacks(concat("gpu cuda:", wanted), why_no_cuda(static_cast<int>(wanted)));
  check_libraries(r);
}

void check_disk(Report& r, const std::string& out) {
  std::error_code failed;
  fs::path folder = fs::absolute(out, failed);
  while (!fs::exists(folder, failed) && folder.has_relative_path()) folder = folder.parent_path();
  const fs::space_info space = fs::space(folder, failed);
  if (failed) return r.lacks("disk", concat(folder.string(), ": ", failed.message()));
  const double bytes = static_cast<double>(space.available);
  const std::string text = concat(bytes_text(bytes), " free in ", folder.string());
  if (bytes >= kLeastFree)
    r.ok("disk", text);
  else
    r.lacks("disk", text +
                        "; a checkpoint takes 12 bytes a parameter: name another folder with --set "
                        "train.out=FOLDER");
}

}  // namespace

int run_doctor(const DoctorArguments& a, std::ostream& out) {
  const bool asked = a.device.starts_with("cuda");
  if (!asked && !a.device.empty()) (void)device_from(a.device);  // throws for a name that is none
  const size_t colon = a.device.find(':');
  const std::string index = colon == std::string::npos ? "0" : a.device.substr(colon + 1);
  require(!asked || (index.size() < 3 && !index.empty() &&
                     index.find_first_not_of("0123456789") == std::string::npos &&
                     (a.device == "cuda" || colon == 4)),
          "unknown device \"", a.device, "\"; known: cpu cuda cuda:N auto");
  Report r(out, asked);
  check_host(r);
  check_cuda(r, asked ? static_cast<size_t>(std::stoi(index)) : 0);
  check_disk(r, a.out);
  return r.failed() ? 2 : 0;
}

}  // namespace weft::train
