#include "core/mirror.h"

#include "tests/catch.h"

using namespace weft;

TEST_CASE("mirror: a tensor of the host goes to a device as the copy that is there") {
  const Tensor host = tensor_of<int32_t>({0, 3, 9}), there = empty({3}, Dtype::i32, kMeta);
  CHECK_FALSE(host.to(kMeta).shares_memory(there));
  {
    const MirrorScope scope(host, there);
    CHECK(host.to(kMeta).same_view(there));
    CHECK_FALSE(host.slice(0, 0, 2).to(kMeta).shares_memory(there));
    CHECK_FALSE(host.clone().to(kMeta).shares_memory(there));
  }
  CHECK_FALSE(host.to(kMeta).shares_memory(there));
}
