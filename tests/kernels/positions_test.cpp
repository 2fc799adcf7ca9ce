// Operations that count positions from an offset, and from a number that lies in memory.
#include "kernels/contract/agreement.h"
#include "tests/catch.h"

namespace weft::kernels {
namespace {

bool has(const Operation& op, const std::string& name, bool tensor) {
  for (const Setting& s : op.settings())
    if (s.name == name && s.tensor == tensor) return true;
  return false;
}

Tensor position_of(int64_t position, Device device) {
  return tensor_of<int32_t>({static_cast<int32_t>(position)}).to(device);
}

void check_sums(Device device, const std::vector<Dtype>& dtypes, double bound) {
  int cases = 0;
  for (const Operation* op : operations()) {
    if (!has(*op, "position", true) || !has(*op, "offset", false)) continue;
    for (const NamedCase& c : op->cases())
      for (const Dtype dtype : dtypes) {
        const Expected e = expected_of(*op, c, dtype, Form::chunkwise);
        const Tensors plain = on_device(device, e.inputs),
                      dy = on_device(device, e.output_gradients);
        for (const auto& [position, offset] : std::vector<std::pair<int64_t, int64_t>>{
                 {3, 5}, {0, 7}, {7, 0}, {100, -40}, {2000, 70000}}) {
          ++cases;
          INFO(op->name() << ", " << c.name << " in " << dtype << " on " << device << ": position "
                          << position << ", offset " << offset);
          Tensors placed = plain;
          placed["position"] = position_of(position, device);
          Settings both = c.settings, sum = c.settings;
          both["offset"] = concat(offset);
          sum["offset"] = concat(position + offset);
          Tensors unplaced = plain;
          unplaced.erase("position");
          const auto same = [bound](const Tensors& got, const Tensors& expected) {
            REQUIRE(got.size() == expected.size());
            for (const auto& [name, t] : expected)
              CHECK(difference(got.at(name), t, 0).error <= bound);
          };
          same(op->forward(Form::chunkwise, placed, both),
               op->forward(Form::chunkwise, unplaced, sum));
          same(op->backward(Form::chunkwise, placed, both, dy),
               op->backward(Form::chunkwise, unplaced, sum, dy));
        }
      }
  }
  CHECK(cases > 20);
}

}  // namespace

TEST_CASE("positions: one that lies in memory counts on top of the offset, to the bit") {
  check_sums(kCpu, {Dtype::f64, Dtype::f32}, 0);
}

TEST_CASE("cuda positions: one that lies in memory counts on top of the offset", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  check_sums(kCuda, {Dtype::f32, Dtype::bf16}, 1e-3);
}

}  // namespace weft::kernels
