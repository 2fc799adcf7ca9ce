// Packed documents as every operation takes them.
#include <algorithm>

#include "kernels/contract/agreement.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

constexpr int64_t kEmpty = 3;

// With rows of zeros behind those that t has.
Tensor longer(const Tensor& t, int64_t rows, double value = 0) {
  Shape shape = t.shape();
  shape[0] += rows;
  const Tensor all = full(shape, value, t.dtype());
  all.slice(0, 0, t.size(0)).copy_from(t);
  return all;
}

// The same call with empty documents behind the others.
Tensors padded(Tensors in) {
  Tensor& cu = in.at("cu_seqlens");
  cu = longer(cu, kEmpty, static_cast<double>(to_ints(cu).back()));
  return in;
}

bool returns_states(const Operation& op) {
  const auto settings = op.settings();
  return std::any_of(settings.begin(), settings.end(),
                     [](const Setting& s) { return s.name == "return_state"; });
}

// Of a case with packed documents, the one in which no state is given or wanted.
NamedCase without_states(const Operation& op, NamedCase c) {
  std::erase_if(c.inputs, [](const auto& input) { return input.first.starts_with("initial_"); });
  if (returns_states(op)) c.settings["return_state"] = "false";
  return c;
}

void check_same(const Tensors& got, const Tensors& expected) {
  for (const auto& [name, t] : expected) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    CHECK(to_doubles(got.at(name)) == to_doubles(t));
  }
}

void check_empty_documents(Device device, Dtype dtype) {
  for (const Operation* op : operations())
    for (const NamedCase& packed : op->cases()) {
      if (packed.inputs.count("cu_seqlens") == 0) continue;
      const NamedCase c = without_states(*op, packed);
      INFO(op->name() << ", " << c.name << ", " << dtype << " on " << device);
      const Expected e = expected_of(*op, c, dtype);
      const Tensors in = on_device(device, e.inputs), dy = on_device(device, e.output_gradients);
      check_same(op->forward(Form::chunkwise, padded(in), c.settings),
                 op->forward(Form::chunkwise, in, c.settings));
      check_same(op->backward(Form::chunkwise, padded(in), c.settings, dy),
                 op->backward(Form::chunkwise, in, c.settings, dy));
    }
}

}  // namespace

TEST_CASE("documents: empty ones at the end leave every bit of the others as it was") {
  check_empty_documents(kCpu, Dtype::f64);
  check_empty_documents(kCpu, Dtype::f32);
}

TEST_CASE("documents: empty ones at the end change nothing on a GPU either", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  check_empty_documents(kCuda, Dtype::f32);
  check_empty_documents(kCuda, Dtype::bf16);
}

TEST_CASE("documents: an empty one where states are given or wanted is refused") {
  for (const Operation* op : operations())
    for (NamedCase c : op->cases()) {
      if (c.inputs.count("cu_seqlens") == 0 || !returns_states(*op)) continue;
      INFO(op->name() << ", " << c.name);
      c.settings["return_state"] = "true";
      CHECK_THROWS_WITH(op->forward(Form::chunkwise, padded(c.inputs), c.settings),
                        ContainsSubstring("an empty document has no state"));
    }
}
