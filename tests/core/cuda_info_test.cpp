#include "core/cuda_info.h"

#include "core/device.h"
#include "tests/catch.h"

using namespace weft;

TEST_CASE("cuda_info: machine code runs within its generation, PTX on all newer ones") {
  CHECK(runs_on("80", 80));
  CHECK(runs_on("80", 86));
  CHECK(runs_on("80", 120));
  CHECK(runs_on("80-real", 89));
  CHECK_FALSE(runs_on("80-real", 90));
  CHECK_FALSE(runs_on("86-real", 80));
  CHECK(runs_on("80-virtual", 90));
  CHECK_FALSE(runs_on("80", 75));
  CHECK(runs_on("90a-real", 90));
  CHECK_FALSE(runs_on("90a-real", 100));
  CHECK_FALSE(runs_on("90a", 80));
  CHECK(runs_on("80 90a-real", 100));
  CHECK_FALSE(runs_on("", 90));
}

TEST_CASE("cuda_info: what there is agrees with what can be used") {
  const CudaInfo info = cuda_info();
  CHECK((info.toolkit > 0) == has_cuda);
  CHECK(static_cast<int>(info.gpus.size()) == cuda_device_count());
  CHECK(cuda_version_text(13020) == "13.2");
}
