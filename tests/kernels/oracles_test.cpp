// Every kept result of an implementation that is not ours (tests/oracles) against every form,
// through the reading that `weft op` does. Whole layers and models are compared in tests/layers,
// the optimizers in tests/train and muon_test.cpp.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "train/workbench/op.h"

using namespace weft;

namespace {

bool is_operation(const std::string& path) {
  const std::string name = Hdf5Reader(path).text("", "operation");
  const auto begins = [&](const char* with) { return name.rfind(with, 0) == 0; };
  return name == "layer_norm" ||
         !(begins("layer_") || begins("model_") || name == "adamw" || name == "muon");
}

std::vector<std::string> oracle_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(tests::source_path("tests/oracles")))
    if (entry.path().extension() == ".h5" && is_operation(entry.path().string()))
      files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

void check_all(Dtype dtype) {
  const std::vector<std::string> files = oracle_files();
  REQUIRE(files.size() > 90);
  for (const std::string& path : files) {
    const std::string name = Hdf5Reader(path).text("", "operation");
    INFO(path);
    for (const kernels::Form form : kernels::operation(name).forms())
      for (const train::OpCheck& c : train::check_operation_file(path, form, dtype)) {
        INFO(c.form << ": " << c.text);
        CHECK(c.passed());
      }
  }
}

}  // namespace

TEST_CASE("oracles: every form agrees with the results of other implementations in f64") {
  check_all(Dtype::f64);
}

TEST_CASE("oracles: every form agrees in f32 and bf16 as far as these allow") {
  check_all(Dtype::f32);
  check_all(Dtype::bf16);
}
