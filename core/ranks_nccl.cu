// Transfers between ranks on GPUs, by NCCL. The library is looked up at run time and never linked.
// A transfer is one group of sends and receives on the device's stream, which a CUDA graph may
// record; NCCL adds nothing up, so that the order of sums stays ours.
#include <nccl.h>

#include <atomic>
#include <cstring>

#include "core/cuda.cuh"
#include "core/library.h"
#include "core/ranks.h"

namespace weft {
namespace {

struct Library {
  decltype(&ncclGetVersion) version;
  decltype(&ncclGetUniqueId) unique_id;
  decltype(&ncclCommInitRank) init;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclGetErrorString) error_string;
};

const Library& library() {
  static const Library all = [] {
    void* const handle = open_library({"libnccl.so.2"});
    require(handle != nullptr,
            "libnccl.so.2 was not found: several GPUs need it. It comes with NVIDIA's libnccl2 "
            "package, and with PyTorch's nvidia-nccl package. Install it, or name its folder in "
            "LD_LIBRARY_PATH; one GPU needs none");
    Library l{};
    find_function(handle, "ncclGetVersion", l.version);
    find_function(handle, "ncclGetUniqueId", l.unique_id);
    find_function(handle, "ncclCommInitRank", l.init);
    find_function(handle, "ncclCommDestroy", l.destroy);
    find_function(handle, "ncclCommAbort", l.abort);
    find_function(handle, "ncclGroupStart", l.group_start);
    find_function(handle, "ncclGroupEnd", l.group_end);
    find_function(handle, "ncclSend", l.send);
    find_function(handle, "ncclRecv", l.recv);
    find_function(handle, "ncclGetErrorString", l.error_string);
    int version = 0;
    l.version(&version);
    require(version >= 21100, "NCCL ", version / 10000, ".", version / 100 % 100,
            " is too old, expected 2.11 or newer");
    return l;
  }();
  return all;
}

void check(ncclResult_t status, const char* what) {
  require(status == ncclSuccess, "NCCL: ", what, ": ", library().error_string(status));
}

// "0000:18:00.0", the GPU itself whatever its number is in this process.
std::string bus_of(Device device) {
  char name[64] = "";
  cuda_check(cudaDeviceGetPCIBusId(name, sizeof name, device.index));
  return name;
}

class NcclTransport final : public Transport {
 public:
  NcclTransport(const Place& place, Device device, const ExchangeTexts& exchange,
                const std::vector<std::string>& hosts)
      : place_(place), device_(device) {
    cuda_stream(device_);  // the device is chosen before the library looks at it
    refuse_one_gpu_twice(exchange(bus_of(device_)), hosts);
    ncclUniqueId id{};
    if (place_.rank == 0) check(library().unique_id(&id), "a name for the ranks");
    const std::string name = exchange({id.internal, sizeof id.internal})[0];
    std::memcpy(id.internal, name.data(), sizeof id.internal);
    check(library().init(&comm_, place_.size, id, place_.rank), "the ranks cannot connect");
  }
  ~NcclTransport() override {
    if (!abandoned_) library().destroy(comm_);
  }

  void transfer(const std::vector<Part>& sends, const std::vector<Part>& receives) override {
    require(!abandoned_, "the ranks are no longer connected");
    const cudaStream_t stream = cuda_stream(device_);
    check(library().group_start(), "a group");
    for (const Part& p : receives)
      if (const size_t n = bytes(p); n > 0)
        check(library().recv(p.tensor.raw(), n, ncclInt8, p.rank, comm_, stream), "a receive");
    for (const Part& p : sends)
      if (const size_t n = bytes(p); n > 0)
        check(library().send(p.tensor.raw(), n, ncclInt8, p.rank, comm_, stream), "a send");
    check(library().group_end(), "a transfer");
    for (const Part& p : receives) p.tensor.mark_written();
  }
  // Its kernels end, also those that a graph has launched.
  void abandon() override {
    abandoned_ = true;
    library().abort(comm_);
  }

 private:
  static size_t bytes(const Part& p) {
    return static_cast<size_t>(p.tensor.numel() * size_of(p.tensor.dtype()));
  }
  // NCCL itself would only speak of an invalid usage.
  static void refuse_one_gpu_twice(const std::vector<std::string>& buses,
                                   const std::vector<std::string>& hosts) {
    for (size_t i = 0; i < buses.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        require(hosts[i] != hosts[j] || buses[i] != buses[j], "ranks ", j, " and ", i,
                " have the same GPU (", buses[i], " of ", hosts[i],
                "); give each its own by LOCAL_RANK or CUDA_VISIBLE_DEVICES, or start fewer ranks");
  }

  Place place_;
  Device device_;
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> abandoned_{false};
};

}  // namespace

std::unique_ptr<Transport> make_nccl_transport(const Place& place, Device device,
                                               const ExchangeTexts& exchange,
                                               const std::vector<std::string>& hosts) {
  return std::make_unique<NcclTransport>(place, device, exchange, hosts);
}

}  // namespace weft
