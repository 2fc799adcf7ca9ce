#include "core/memory.h"

#include <sys/resource.h>

#include <fstream>

#include "core/tensor.h"
#include "tests/catch.h"

using namespace weft;

namespace {

std::string refusal(const Shape& shape) {
  const OwnerScope owner("layers/0");
  try {
    empty(shape, Dtype::f32, kMeta);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("memory: what may still be taken is between nothing and all of it") {
  CHECK(available_memory() > 0);
  CHECK(available_memory() <= backend(kCpu).memory());
}

// What the kernel says is available, in bytes; 0 where it does not say.
int64_t said_by_kernel() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line))
    if (line.rfind("MemAvailable:", 0) == 0) return std::stoll(line.substr(13)) * 1024;
  return 0;
}

TEST_CASE("memory: where nothing else limits it, half of what the kernel has free can be taken") {
  rlimit most{};
  REQUIRE(getrlimit(RLIMIT_AS, &most) == 0);
  int64_t group = 0;
  const bool limited = static_cast<bool>(std::ifstream("/sys/fs/cgroup/memory.max") >> group);
  if (limited || most.rlim_cur != RLIM_INFINITY || said_by_kernel() == 0)
    SKIP("this process has a limit of its own");
  CHECK(available_memory() > said_by_kernel() / 2);
  CHECK(available_memory() / 2 < said_by_kernel());
}

TEST_CASE("memory: a tensor of too many bytes is refused with its shape and its owner") {
  const int64_t big = int64_t{1} << 31;
  for (const Shape& shape : {Shape{big, big}, Shape{big, big, big}, Shape{3, int64_t{1} << 61},
                             Shape{big, big, 0, big, big}}) {
    INFO(shape << ": " << refusal(shape));
    CHECK(refusal(shape).find("layers/0: a tensor of shape [") == 0);
    CHECK(refusal(shape).find("is larger than any memory") != std::string::npos);
  }
  CHECK(refusal({-64}).find("layers/0: a tensor of shape [-64] cannot be made") == 0);
  CHECK(refusal({big, 0}).empty());
}

TEST_CASE("memory: more bytes than a machine can have are refused by owner and size") {
  for (const int64_t bytes : {int64_t{-256}, INT64_MAX, INT64_MAX - 10}) {
    std::string text;
    try {
      const OwnerScope owner("scratch of delta");
      allocator(kCpu).allocate(bytes);
    } catch (const Error& error) {
      text = error.what();
    }
    CHECK(text.find("scratch of delta asked for ") == 0);
    CHECK(text.find("more than any machine has") != std::string::npos);
  }
}
