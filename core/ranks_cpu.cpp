// Transfers between ranks on the CPU, by weft_gloo.so, which is looked up at run time.
#include <filesystem>

#include "core/library.h"
#include "core/ranks.h"
#include "core/ranks_gloo.h"

namespace weft {
namespace {

struct Library {
  decltype(&weft_gloo_open) open;
  decltype(&weft_gloo_addresses) addresses;
  decltype(&weft_gloo_connect) connect;
  decltype(&weft_gloo_transfer) transfer;
  decltype(&weft_gloo_abandon) abandon;
  decltype(&weft_gloo_close) close;
};

// Where the program was built it lies beside it; where it was installed, in ../lib/weft.
std::string place_of_gloo() {
  std::error_code none;
  const auto folder = std::filesystem::read_symlink("/proc/self/exe", none).parent_path();
  const auto installed = folder.parent_path() / "lib" / "weft" / "weft_gloo.so";
  return (std::filesystem::exists(installed, none) ? installed : folder / "weft_gloo.so").string();
}

// Null, with the reason in `why`, where it cannot be loaded.
const Library* library(std::string& why) {
  static std::string reason;
  static const Library* const one = []() -> const Library* {
    const std::string path = place_of_gloo();
    std::error_code none;
    if (!std::filesystem::exists(path, none)) {
      reason = "this build is without Gloo: install libgloo-dev and build again (./weft does both)";
      return nullptr;
    }
    void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      reason = concat(path, " cannot be loaded: ", ::dlerror(), "; install libgloo0");
      return nullptr;
    }
    static Library l{};
    find_function(handle, "weft_gloo_open", l.open);
    find_function(handle, "weft_gloo_addresses", l.addresses);
    find_function(handle, "weft_gloo_connect", l.connect);
    find_function(handle, "weft_gloo_transfer", l.transfer);
    find_function(handle, "weft_gloo_abandon", l.abandon);
    find_function(handle, "weft_gloo_close", l.close);
    return &l;
  }();
  why = reason;
  return one;
}

class CpuTransport final : public Transport {
 public:
  CpuTransport(const Library& l, const Place& place, const ExchangeTexts& exchange) : l_(l) {
    g_ = l_.open(place.rank, place.size, place.address.c_str(), why_, sizeof why_);
    require(g_ != nullptr, "Gloo cannot listen at ", place.address, ": ", why_);
    size_t bytes = 0;
    const char* const own = l_.addresses(g_, &bytes);
    const std::vector<std::string> all = exchange({own, bytes});
    std::vector<const char*> data;
    std::vector<size_t> sizes;
    for (const std::string& a : all) data.push_back(a.data()), sizes.push_back(a.size());
    const int failed = l_.connect(g_, data.data(), sizes.data(), why_, sizeof why_);
    if (failed) l_.close(g_);
    require(!failed, "Gloo cannot connect the ranks: ", why_);
  }
  ~CpuTransport() override { l_.close(g_); }

  void transfer(const std::vector<Part>& sends, const std::vector<Part>& receives) override {
    const std::vector<WeftPart> out = raw(sends), in = raw(receives);
    const int failed =
        l_.transfer(g_, out.data(), out.size(), in.data(), in.size(), why_, sizeof why_);
    require(!failed, "Gloo: ", why_);
    for (const Part& p : receives) p.tensor.mark_written();
  }
  void abandon() override { l_.abandon(g_); }

 private:
  static std::vector<WeftPart> raw(const std::vector<Part>& parts) {
    std::vector<WeftPart> list;
    for (const Part& p : parts)
      if (const auto n = p.tensor.numel() * size_of(p.tensor.dtype()); n > 0)
        list.push_back({p.rank, p.tensor.raw(), static_cast<size_t>(n)});
    return list;
  }

  const Library& l_;
  WeftGloo* g_ = nullptr;
  char why_[512] = "";
};

}  // namespace

std::string why_no_cpu_ranks() {
  std::string why;
  return library(why) ? "" : why;
}

std::unique_ptr<Transport> make_cpu_transport(const Place& place, const ExchangeTexts& exchange) {
  std::string why;
  const Library* const l = library(why);
  require(l != nullptr, "ranks on the CPU: ", why);
  return std::make_unique<CpuTransport>(*l, place, exchange);
}

}  // namespace weft
