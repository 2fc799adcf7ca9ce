// The update's own check: what it leaves is finite, or it says so.
#include "kernels/optimizer/adamw.h"

#include <cmath>

#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

// More than a piece of either device; gradients of one half, but for one value.
AdamwTensor tensor_with(float p, float g, Device device = kCpu) {
  const int64_t n = 40001;
  const Tensor master = full({n}, 1.0, Dtype::f32), grad = full({n}, 0.5, Dtype::f32);
  master.data<float>()[n - 3] = p;
  grad.data<float>()[n - 3] = g;
  return {master.to(device),
          zeros({n}, Dtype::f32, device),
          zeros({n}, Dtype::f32, device),
          grad.to(device),
          {},
          true};
}

struct Case {
  const char* what;
  float p, g;
  AdamwSettings settings;
  double lr;
  bool good;
};
const Case kCases[] = {
    {"an ordinary step", 1, 0.5f, {}, 1e-3, true},
    {"a gradient of 0 without eps: 0 / 0", 1, 0, {.eps = 0}, 1e-3, false},
    {"a gradient of 0 with an eps that f32 does not know", 1, 0, {.eps = 1e-60}, 1e-3, false},
    {"a gradient of 0 and eps", 1, 0, {}, 1e-3, true},
    {"a decay that passes the largest number", 1e38f, 0, {.weight_decay = 1e3}, 1e3, false},
    {"a gradient whose square passes the largest number", 1, 1e30f, {}, 1e-3, false}};

}  // namespace

TEST_CASE("adamw: an update that leaves a value not finite says so") {
  for (const Case& c : kCases) {
    INFO(c.what);
    CHECK(adamw({tensor_with(1, 0.5f), tensor_with(c.p, c.g)}, c.settings, 1, c.lr, 1) == c.good);
  }
}

TEST_CASE("adamw: on a GPU an update that is not finite marks its step, and none follows",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  if constexpr (has_cuda)
    for (const Case& c : kCases) {
      if (c.g > 1e19f) continue;  // there the norm is not finite already
      INFO(c.what);
      const std::vector<AdamwTensor> list{tensor_with(1, 0.5f, kCuda),
                                          tensor_with(c.p, c.g, kCuda)};
      const CudaAdamw fused(list, c.settings);
      std::vector<float> host(static_cast<size_t>(kStepNumbers), 0.0f);
      const auto send = [&](int64_t n) {
        const StepNumbers numbers = step_numbers(c.settings, n, c.lr);
        host[0] = numbers.rate, host[1] = numbers.root, host[2] = numbers.decay;
        host[3] = numbers.step;
      };
      send(1);
      Tensor numbers = tensor_of(host).to(kCuda);
      fused.step(numbers);
      const double failed = to_doubles(numbers).back();
      CHECK(failed == (c.good ? 0 : 1));
      const double before = to_doubles(list[0].master)[0];
      send(2);
      host.back() = static_cast<float>(failed);
      numbers = tensor_of(host).to(kCuda);
      fused.step(numbers);
      CHECK(to_doubles(numbers).back() == failed);
      CHECK((to_doubles(list[0].master)[0] == before) == !c.good);
    }
}
