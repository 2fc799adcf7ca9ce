// Packed documents as every operation takes them.
#include "kernels/agreement.h"
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

bool one_a_document(const std::string& name) {
  return name.find("initial") != std::string::npos || name.find("final") != std::string::npos;
}

// The same call with empty documents behind the others.
Tensors padded(Tensors in) {
  for (auto& [name, t] : in) {
    if (name == "cu_seqlens")
      t = longer(t, kEmpty, static_cast<double>(to_ints(t).back()));
    else if (one_a_document(name))
      t = longer(t.to(kCpu), kEmpty).to(t.device());
  }
  return in;
}

void check_same(const Tensors& got, const Tensors& expected) {
  for (const auto& [name, t] : expected) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    const Tensor& whole = got.at(name);
    CHECK(to_doubles(one_a_document(name) ? whole.slice(0, 0, t.size(0)) : whole) == to_doubles(t));
  }
}

void check_empty_documents(Device device, Dtype dtype) {
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases()) {
      if (c.inputs.count("cu_seqlens") == 0) continue;
      INFO(op->name() << ", " << c.name << ", " << dtype << " on " << device);
      const Expected e = expected_of(*op, c, dtype);
      const Tensors in = on_device(device, e.inputs), dy = on_device(device, e.output_gradients);
      check_same(op->forward(Form::chunkwise, padded(in), c.settings),
                 op->forward(Form::chunkwise, in, c.settings));
      check_same(op->backward(Form::chunkwise, padded(in), c.settings, padded(dy)),
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
