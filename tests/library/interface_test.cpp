// The C interface, called as a C program would call it.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/contract/operation.h"
#include "library/weft.h"
#include "tests/catch.h"

using namespace weft;

namespace {

// A row-major f64 or i32 tensor in memory of its own.
template <class Number>
struct Foreign {
  std::vector<Number> numbers;
  std::vector<int64_t> shape, strides;
  DLTensor tensor{};

  Foreign(std::vector<int64_t> sizes, std::vector<Number> all) : numbers(all), shape(sizes) {
    tensor.data = numbers.data();
    tensor.device = {kDLCPU, 0};
    tensor.ndim = static_cast<int>(shape.size());
    const bool whole = std::is_integral_v<Number>;
    tensor.dtype = {static_cast<uint8_t>(whole ? kDLInt : kDLFloat), 8 * sizeof(Number), 1};
    tensor.shape = shape.data();
  }
  Foreign(const Foreign&) = delete;
};
using Doubles = Foreign<double>;

std::vector<double> numbers_of(const DLTensor& t) {
  int64_t count = 1;
  for (int i = 0; i < t.ndim; ++i) count *= t.shape[i];
  const auto* p = static_cast<const double*>(t.data);
  return {p, p + count};
}

struct Result {
  weft_result* handle = nullptr;
  ~Result() { weft_result_free(handle); }
  const DLTensor* named(const std::string& name) const {
    for (size_t i = 0; i < weft_result_count(handle); ++i)
      if (weft_result_name(handle, i) == name) return weft_result_tensor(handle, i);
    return nullptr;
  }
};

// A call of matmul: y = x w' + bias for x [2, 3] and w [1, 3].
struct Matmul {
  Doubles x{{2, 3}, {1, 2, 3, 4, 5, 6}}, w{{1, 3}, {1, 10, 100}}, dy{{2, 1}, {1, -1}};
  std::vector<weft_tensor> inputs{{"x", &x.tensor}, {"w", &w.tensor}};
  std::vector<weft_tensor> gradients{{"dy", &dy.tensor}};
  weft_call call{};

  Matmul() {
    call.interface_version = WEFT_INTERFACE;
    call.operation = "matmul";
    renew();
  }
  void renew() {
    call.inputs = inputs.data();
    call.input_count = inputs.size();
    call.output_gradients = gradients.data();
    call.output_gradient_count = gradients.size();
  }
  std::string refusal(bool backward = false) {
    renew();
    Result r;
    const int status = (backward ? weft_backward : weft_forward)(&call, &r.handle);
    CHECK(status == WEFT_MISTAKE);
    CHECK(r.handle == nullptr);
    return weft_error();
  }
};

}  // namespace

TEST_CASE("interface: it lists every operation with all that it reads, makes and can be told") {
  size_t count = 0;
  const char* const* names = weft_operations(&count);
  REQUIRE(count == kernels::operations().size());
  for (size_t i = 0; i < count; ++i) {
    const kernels::Operation& op = *kernels::operations()[i];
    INFO(op.name());
    CHECK(op.name() == names[i]);
    size_t fields = 0, forms = 0;
    const weft_field* field = weft_fields(names[i], &fields);
    REQUIRE(field);
    CHECK(fields == op.inputs().size() + op.outputs().size() + op.settings().size());
    CHECK(field[0].kind == WEFT_INPUT);
    CHECK(field[0].gradient == kernels::gradient_name(op.inputs()[0].name));
    const char* const* form = weft_forms(names[i], &forms);
    REQUIRE(forms == op.forms().size());
    CHECK(std::string(form[forms - 1]) == "chunkwise");
  }
  CHECK(weft_fields("mamul", &count) == nullptr);
  CHECK(count == 0);
  CHECK_THAT(weft_error(), ContainsSubstring("did you mean \"matmul\""));
  CHECK(weft_forms(nullptr, &count) == nullptr);
  CHECK(weft_interface() == WEFT_INTERFACE);
}

TEST_CASE("interface: forward and backward give the operation's own numbers") {
  Matmul m;
  Result y, dx;
  REQUIRE(weft_forward(&m.call, &y.handle) == WEFT_OK);
  CHECK(std::string(weft_error()).empty());
  REQUIRE(weft_result_count(y.handle) == 1);
  CHECK(numbers_of(*y.named("y")) == std::vector<double>{321, 654});
  REQUIRE(weft_backward(&m.call, &dx.handle) == WEFT_OK);
  CHECK(numbers_of(*dx.named("dx")) == std::vector<double>{1, 10, 100, -1, -10, -100});
  CHECK(numbers_of(*dx.named("dw")) == std::vector<double>{-3, -3, -3});
  const char* constant[] = {"x"};
  m.call.constants = constant;
  m.call.constant_count = 1;
  Result dw;
  REQUIRE(weft_backward(&m.call, &dw.handle) == WEFT_OK);
  CHECK(weft_result_count(dw.handle) == 1);
  CHECK(weft_result_name(dw.handle, 1) == nullptr);
  CHECK(weft_result_tensor(dw.handle, 1) == nullptr);
}

TEST_CASE("interface: settings and forms are those of the operation") {
  Matmul m;
  Doubles x({1, 2}, {3, -4});
  m.inputs = {{"x", &x.tensor}};
  m.call.operation = "l2_norm";
  const weft_setting eps[] = {{"eps", "0"}};
  m.call.settings = eps;
  m.call.setting_count = 1;
  m.call.form = "naive";
  m.renew();
  Result y;
  REQUIRE(weft_forward(&m.call, &y.handle) == WEFT_OK);
  CHECK(numbers_of(*y.named("y"))[0] == Approx(0.6));
}

TEST_CASE("interface: a tensor may have any strides and an offset in bytes") {
  Matmul m;
  // x once more, transposed, backwards, and behind a number that is not its own.
  Doubles x({2, 3}, {-1, 6, 3, 5, 2, 4, 1});
  x.strides = {-1, -2};
  x.tensor.strides = x.strides.data();
  x.tensor.byte_offset = 6 * sizeof(double);
  m.inputs[0].tensor = &x.tensor;
  Result y;
  REQUIRE(weft_forward(&m.call, &y.handle) == WEFT_OK);
  CHECK(numbers_of(*y.named("y")) == std::vector<double>{321, 654});
  // One row for both rows.
  x.strides = {0, -2};
  Result same;
  REQUIRE(weft_forward(&m.call, &same.handle) == WEFT_OK);
  CHECK(numbers_of(*same.named("y")) == std::vector<double>{321, 321});
}

TEST_CASE("interface: inputs are never written, and results outlive them and their result") {
  DLManagedTensor* kept = nullptr;
  {
    Matmul m;
    Result y;
    REQUIRE(weft_forward(&m.call, &y.handle) == WEFT_OK);
    kept = weft_result_managed(y.handle, 0);
    CHECK(weft_result_managed(y.handle, 1) == nullptr);
    CHECK(m.x.numbers == std::vector<double>{1, 2, 3, 4, 5, 6});
  }
  REQUIRE(kept);
  CHECK(numbers_of(kept->dl_tensor) == std::vector<double>{321, 654});
  CHECK(kept->dl_tensor.strides[0] == 1);
  kept->deleter(kept);
}

TEST_CASE("interface: index tensors that an operation writes are results") {
  Matmul m;
  Doubles logits({1, 3}, {1, 3, 2});
  m.inputs = {{"logits", &logits.tensor}};
  const weft_setting top[] = {{"top_k", "1"}};
  m.call.operation = "router";
  m.call.settings = top;
  m.call.setting_count = 1;
  m.renew();
  Result y;
  const int status = weft_forward(&m.call, &y.handle);
  INFO(weft_error());
  REQUIRE(status == WEFT_OK);
  const DLTensor* index = y.named("index");
  REQUIRE(index);
  CHECK(index->dtype.code == kDLInt);
  CHECK(index->dtype.bits == 32);
  CHECK(*static_cast<const int32_t*>(index->data) == 1);
}

TEST_CASE("interface: every mistake is told as text, and nothing comes back") {
  Matmul m;
  m.call.interface_version = WEFT_INTERFACE + 1;
  CHECK_THAT(m.refusal(), ContainsSubstring("built for version"));
  m.call.interface_version = WEFT_INTERFACE;
  m.call.form = "fast";
  CHECK_THAT(m.refusal(), ContainsSubstring("unknown form \"fast\""));
  m.call.form = nullptr;
  m.inputs[1].name = "v";
  CHECK_THAT(m.refusal(), ContainsSubstring("unknown tensor \"v\""));
  m.inputs[1] = m.inputs[0];
  CHECK_THAT(m.refusal(), ContainsSubstring("x is given twice"));
  m.inputs.pop_back();
  CHECK_THAT(m.refusal(), ContainsSubstring("input w [O, I] is missing"));
  m.inputs.push_back({"w", nullptr});
  CHECK_THAT(m.refusal(), ContainsSubstring("w is no tensor"));
  m.inputs[1] = {"w", &m.w.tensor};
  m.w.tensor.dtype.bits = 16;
  CHECK_THAT(m.refusal(), ContainsSubstring("w is float16; expected float64"));
  m.w.tensor.dtype = {kDLFloat, 64, 2};
  CHECK_THAT(m.refusal(), ContainsSubstring("w is float64x2"));
  m.w.tensor.dtype = m.x.tensor.dtype;
  const int other = 10;  // a device that our declaration has no name for
  std::memcpy(&m.w.tensor.device.device_type, &other, sizeof other);
  CHECK_THAT(m.refusal(), ContainsSubstring("w is on device type 10"));
  m.w.tensor.device.device_type = kDLCPU;
  m.w.tensor.ndim = 7;
  CHECK_THAT(m.refusal(), ContainsSubstring("w has 7 dimensions; expected 0 to 6"));
  m.w.tensor.ndim = 2;
  m.w.shape[0] = -1;
  CHECK_THAT(m.refusal(), ContainsSubstring("size -1 of dimension 0"));
  m.w.shape[0] = int64_t{1} << 62;
  CHECK_FALSE(m.refusal().empty());
  m.w.shape[0] = 1;
  m.w.tensor.data = nullptr;
  CHECK_THAT(m.refusal(), ContainsSubstring("w has no data"));
  m.w.tensor.data = m.w.numbers.data();
  m.call.operation = "mamul";
  CHECK_THAT(m.refusal(), ContainsSubstring("unknown operation \"mamul\""));
  CHECK(weft_forward(nullptr, nullptr) == WEFT_MISTAKE);
}

TEST_CASE("interface: an output's gradient is refused unless it is like its output") {
  Matmul m;
  m.dy.shape = {1, 2};
  CHECK_THAT(m.refusal(true), ContainsSubstring("dy has shape [1, 2], expected [2, 1] as y"));
  m.call.form = "naive";
  CHECK_THAT(m.refusal(true), ContainsSubstring("dy has shape [1, 2], expected [2, 1] as y"));
  m.call.form = nullptr;
  m.dy.shape = {2, 1};
  const Foreign<float> single({2, 1}, {1, 1});
  m.gradients = {{"dy", &single.tensor}};
  CHECK_THAT(m.refusal(true), ContainsSubstring("dy is f32, expected f64"));
  m.gradients = {{"dz", &m.dy.tensor}};
  CHECK_THAT(m.refusal(true), ContainsSubstring("a gradient was given for no output"));
  m.gradients = {{"dy", &m.dy.tensor}};
  const char* constant[] = {"z"};
  m.call.constants = constant;
  m.call.constant_count = 1;
  CHECK_THAT(m.refusal(true), ContainsSubstring("unknown input \"z\""));
}

TEST_CASE("interface: a gradient of an output that the settings leave out is refused") {
  Matmul m;
  Doubles q({1, 2, 1, 2}, {1, 2, 3, 4}), state({1, 1, 2, 2}, {1, 2, 3, 4});
  m.inputs = {{"q", &q.tensor}, {"k", &q.tensor}, {"v", &q.tensor}};
  m.gradients = {{"dfinal_state", &state.tensor}};
  const weft_setting none[] = {{"return_state", "false"}};
  m.call.operation = "linear";
  m.call.settings = none;
  m.call.setting_count = 1;
  for (const char* form : {"naive", "recurrent", "chunkwise"}) {
    m.call.form = form;
    CHECK_THAT(m.refusal(true), ContainsSubstring("final_state is not made with these options"));
  }
}
