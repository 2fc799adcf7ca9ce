// Muon against torch.optim over 100 steps.
#include "kernels/optimizer/muon.h"

#include <cmath>
#include <limits>

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/gap.h"
#include "tests/paths.h"

using namespace weft;
using weft::tests::gap;
using namespace weft::kernels;

namespace {

const std::vector<std::string> kShapes = {"wide", "tall", "square", "row", "column", "stack"};

const Hdf5Reader& oracle() {
  static const Hdf5Reader file(tests::source_path("tests/oracles/muon.h5"));
  return file;
}

struct Run {
  std::vector<MuonTensor> list;
  MuonSettings settings;
  double lr = 0;
  Tensor room;

  Run(const std::string& name, Dtype dtype) {
    const std::vector<double> s = to_doubles(oracle().tensor(name + "/settings"));
    settings = {s[0], s[1], s[2] == 1};
    lr = s[3];
    for (const std::string& shape : kShapes) {
      const Tensor start = oracle().tensor("inputs/start_" + shape).to(dtype);
      list.push_back({start.clone(), zeros_like(start), zeros_like(start)});
    }
    room = empty({muon_room(list)}, dtype);
  }
  bool step(int64_t t, double factor = 1) {
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor all = oracle().tensor("inputs/gradients_" + kShapes[i]);
      list[i].grad.copy_from(all.select(0, t).to(list[i].grad.dtype()));
    }
    return muon(list, settings, lr * to_doubles(oracle().tensor("inputs/rates"))[size_t(t)], factor,
                room);
  }
};

void compare(const std::string& name, Dtype dtype, double bound) {
  INFO(name);
  Run run(name, dtype);
  const std::vector<double> kept = to_doubles(oracle().tensor("inputs/steps"));
  size_t row = 0;
  for (int64_t t = 0; t < 100; ++t) {
    REQUIRE(run.step(t));
    if (row == kept.size() || double(t + 1) != kept[row]) continue;
    for (size_t i = 0; i < kShapes.size(); ++i) {
      INFO(kShapes[i] << ", step " << t + 1);
      const auto wanted = [&](const char* kind) {
        return oracle().tensor(name + "/" + kind + kShapes[i]).select(0, int64_t(row)).contiguous();
      };
      CHECK(gap(run.list[i].master.to(Dtype::f64), wanted("parameters_")).relative() < bound);
      CHECK(gap(run.list[i].m.to(Dtype::f64), wanted("m_")).relative() < bound);
    }
    ++row;
  }
  CHECK(row == kept.size());
}

}  // namespace

TEST_CASE("muon: it is torch.optim's over 100 steps, in f64 and within the rounding of f32") {
  for (const char* name : {"usual", "like_adamw", "no_memory"}) {
    compare(name, Dtype::f64, 1e-11);
    compare(name, Dtype::f32, 2e-3);
  }
}

TEST_CASE("muon: a factor on the gradients is one on the momentum, and changes no direction") {
  Run one("usual", Dtype::f64), other("usual", Dtype::f64);
  for (int64_t t = 3; t < 6; ++t) CHECK((one.step(t) && other.step(t, 0.5)));
  for (size_t i = 0; i < kShapes.size(); ++i) {
    INFO(kShapes[i]);
    CHECK(gap(other.list[i].master, one.list[i].master).relative() < 1e-12);
    const std::vector<double> a = to_doubles(one.list[i].m), b = to_doubles(other.list[i].m);
    for (size_t j = 0; j < a.size(); ++j) CHECK(b[j] == 0.5 * a[j]);
  }
}

TEST_CASE("muon: a value that is not finite is told, in whichever matrix it is") {
  for (size_t i = 0; i < kShapes.size(); ++i) {
    INFO(kShapes[i]);
    Run run("usual", Dtype::f32);
    REQUIRE(run.step(5));
    const Tensor m = run.list[i].m;
    m.data<float>()[m.numel() - 1] = std::numeric_limits<float>::infinity();
    CHECK_FALSE(run.step(6));
  }
}
