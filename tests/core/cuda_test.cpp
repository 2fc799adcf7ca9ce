// Tensors on a GPU: the same copies, casts and sums as on the CPU. Without a GPU these say that
// they were skipped; what a program without one says is tested everywhere.
#include <cmath>

#include "core/tensor.h"
#include "tests/catch.h"

using namespace weft;

namespace {

Tensor counting(const Shape& shape) {
  const Tensor t = empty(shape, Dtype::f32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = static_cast<float>(i) - 5;
  return t;
}

}  // namespace

TEST_CASE("cuda: numbers come back from the GPU as they went, views and casts too", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Tensor host = counting({3, 5, 7});
  const Tensor there = host.to(kCuda);
  CHECK(to_doubles(there) == to_doubles(host));
  CHECK(to_doubles(there.transpose(0, 2)) == to_doubles(host.transpose(0, 2)));
  CHECK(to_doubles(there.slice(1, 1, 4).clone()) == to_doubles(host.slice(1, 1, 4)));
  CHECK(to_doubles(there.to(Dtype::bf16)) == to_doubles(host.to(Dtype::bf16)));
  CHECK(to_doubles(there.to(Dtype::bf16).to(Dtype::f32)) ==
        to_doubles(host.to(Dtype::bf16).to(Dtype::f32)));
  const Tensor row = there.slice(0, 1, 2).select(1, 2).reshape({7, 1});
  CHECK(to_doubles(row.expand(1, 4).clone()) ==
        to_doubles(host.slice(0, 1, 2).select(1, 2).reshape({7, 1}).expand(1, 4)));
  CHECK(there.select(0, 2).select(0, 4).select(0, 6).item() == 99);
}

TEST_CASE("cuda: fills and sums reach views only, and bf16 adds into f32", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Tensor host = counting({4, 6}), there = host.to(kCuda);
  for (const Tensor& t : {host, there}) {
    t.slice(1, 2, 4).fill(0.5);
    t.slice(0, 1, 3).zero();
    t.add_from(t.clone());
    t.add_from(counting({4, 6}).to(t.device()).to(Dtype::bf16));
    t.transpose(0, 1).add_from(counting({6, 4}).to(t.device()));
  }
  CHECK(to_doubles(there) == to_doubles(host));
  CHECK(empty({0, 3}, Dtype::f32, kCuda).clone().numel() == 0);
}

TEST_CASE("cuda: memory handed out is NaN where that is asked for", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  allocator(kCuda).set_poison(true);
  const Tensor t = empty({1000}, Dtype::f32, kCuda);
  allocator(kCuda).set_poison(false);
  for (const double x : to_doubles(t)) REQUIRE(std::isnan(x));
}

TEST_CASE("cuda: out of memory says who asked, and what was held stays good", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Tensor kept = counting({100}).to(kCuda);
  const OwnerScope owner("a test");
  CHECK_THROWS_WITH(empty({int64_t{1} << 40}, Dtype::f32, kCuda),
                    ContainsSubstring("out of memory on cuda:0: a test asked for 4194304 MiB"));
  CHECK(to_doubles(kept) == to_doubles(counting({100})));
}

TEST_CASE("cuda: where there is no GPU, the name of one is refused with the reason") {
  CHECK_THROWS_WITH(device_from("cuda:x"), ContainsSubstring("known: cpu cuda cuda:N auto"));
  if (cuda_device_count() > 0) {
    CHECK(device_from("auto") == kCuda);
    CHECK_THROWS_WITH(device_from("cuda:63"), ContainsSubstring("numbered from cuda:0"));
    return;
  }
  CHECK(device_from("auto") == kCpu);
  CHECK_FALSE(why_no_cuda().empty());
  CHECK_THROWS_WITH(device_from("cuda"), ContainsSubstring("device cuda:0: "));
  CHECK_THROWS_WITH(allocator(kCuda), ContainsSubstring("cuda:0"));
}
