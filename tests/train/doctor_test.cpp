// `weft doctor` tells what there is, and fails for what was asked for and cannot work.
#include "core/device.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

TEST_CASE("doctor: a line each for build, processor, libraries, CUDA and disk") {
  const Folder f;
  const Ran ran = run_weft(f, {"doctor"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  for (const char* what : {"build", "cpu", "hdf5", "sentencepiece", "cuda", "disk"})
    CHECK_THAT(ran.text, ContainsSubstring(std::string(" ") + what + " "));
  CHECK_THAT(ran.text, ContainsSubstring(f.path()));
}

TEST_CASE("doctor: asked for a GPU that cannot be used it says why and exits with 2") {
  if (cuda_device_count() > 0) return;
  const Folder f;
  const Ran ran = run_weft(f, {"doctor", "--device", "cuda"});
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("FAILED"));
  CHECK(run_weft(f, {"doctor", "--device", "cpu"}).status == 0);
}

TEST_CASE("doctor: of a GPU beyond those there are it says how many there are") {
  const Folder f;
  CHECK(run_weft(f, {"doctor", "--device", "cuda:63"}).status == 2);
  const Ran ran = run_weft(f, {"doctor", "--device", "gpu"});
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("unknown device \"gpu\""));
}
