// Trains a tiny model for ten steps with the operations of an installed library, then compares the
// gradient of one operation with central differences. The model reads a byte, remembers by the
// delta rule what came before it, and guesses the next byte.
#include <weft/weft.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {
  std::vector<int64_t> shape;
  std::vector<double> numbers;
};
using Arrays = std::map<std::string, Array>;
using Indices = std::map<std::string, std::vector<int32_t>>;
using Settings = std::map<std::string, std::string>;

// A DLTensor of memory that stays where it is.
template <class Number>
DLTensor tensor_of(const std::vector<Number>& numbers, const std::vector<int64_t>& shape,
                   DLDataTypeCode code) {
  DLTensor t{};
  t.data = const_cast<Number*>(numbers.data());
  t.device = {kDLCPU, 0};
  t.ndim = static_cast<int>(shape.size());
  t.dtype = {static_cast<uint8_t>(code), 8 * sizeof(Number), 1};
  t.shape = const_cast<int64_t*>(shape.data());
  return t;
}

// One operation of the library: forward, or backward where `dy` holds gradients of its outputs.
Arrays run(const std::string& operation, const Arrays& inputs, const Indices& indices = {},
           const Settings& settings = {}, const Arrays& dy = {}) {
  std::vector<DLTensor> tensors;
  std::vector<std::vector<int64_t>> lengths;  // of the indices
  tensors.reserve(inputs.size() + indices.size() + dy.size());
  lengths.reserve(indices.size());
  std::vector<weft_tensor> given, gradients;
  const auto add = [&](std::vector<weft_tensor>& list, const std::string& name, const DLTensor& t) {
    tensors.push_back(t);
    list.push_back({name.c_str(), &tensors.back()});
  };
  for (const auto& [name, a] : inputs) add(given, name, tensor_of(a.numbers, a.shape, kDLFloat));
  for (const auto& [name, numbers] : indices) {
    lengths.push_back({static_cast<int64_t>(numbers.size())});
    add(given, name, tensor_of(numbers, lengths.back(), kDLInt));
  }
  for (const auto& [name, a] : dy) add(gradients, name, tensor_of(a.numbers, a.shape, kDLFloat));
  std::vector<weft_setting> set;
  for (const auto& [name, value] : settings) set.push_back({name.c_str(), value.c_str()});

  weft_call call{};
  call.interface_version = WEFT_INTERFACE;
  call.operation = operation.c_str();
  call.inputs = given.data();
  call.input_count = given.size();
  call.settings = set.data();
  call.setting_count = set.size();
  call.output_gradients = gradients.data();
  call.output_gradient_count = gradients.size();
  weft_result* result = nullptr;
  if ((dy.empty() ? weft_forward : weft_backward)(&call, &result) != WEFT_OK)
    throw std::runtime_error(weft_error());
  Arrays made;
  for (size_t i = 0; i < weft_result_count(result); ++i) {
    const DLTensor& t = *weft_result_tensor(result, i);
    Array& a = made[weft_result_name(result, i)];
    a.shape.assign(t.shape, t.shape + t.ndim);
    int64_t count = 1;
    for (const int64_t size : a.shape) count *= size;
    const auto* numbers = static_cast<const double*>(t.data);
    a.numbers.assign(numbers, numbers + count);
  }
  weft_result_free(result);
  return made;
}

Array shaped(Array a, std::vector<int64_t> shape) {
  a.shape = std::move(shape);
  return a;
}

Array normal(std::vector<int64_t> shape, double scale, unsigned seed) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  std::mt19937 generator(seed);
  std::normal_distribution<double> numbers(0, scale);
  Array a{std::move(shape), std::vector<double>(static_cast<size_t>(count))};
  for (double& x : a.numbers) x = numbers(generator);
  return a;
}

constexpr int64_t kTokens = 48, kLetters = 8, kWidth = 16;

// Loss of the text, and the gradients of the parameters.
double step(const Arrays& p, const std::vector<int32_t>& text, Arrays& gradients) {
  const std::vector<int32_t> ids(text.begin(), text.end() - 1), next(text.begin() + 1, text.end());
  const std::vector<int64_t> rows{kTokens, kWidth}, heads{1, kTokens, 1, kWidth};
  const Array x = run("embedding", {{"weight", p.at("letters")}}, {{"ids", ids}})["y"];
  Arrays in{{"beta", {{1, kTokens, 1}, std::vector<double>(kTokens, 0.5)}}};
  for (const char* name : {"q", "k", "v"})
    in[name] = shaped(run("matmul", {{"x", x}, {"w", p.at(name)}})["y"], heads);
  const Array raw = in["k"];
  in["k"] = shaped(run("l2_norm", {{"x", shaped(raw, rows)}})["y"], heads);
  const Array o = shaped(run("delta", in)["o"], rows);
  const Arrays end{{"x", o}, {"w", p.at("out")}};
  const double loss = run("cross_entropy", end, {{"targets", next}})["loss"].numbers[0];

  Arrays d = run("cross_entropy", end, {{"targets", next}}, {}, {{"dloss", {{1}, {1.0}}}});
  gradients["out"] = d["dw"];
  d = run("delta", in, {}, {}, {{"dout", shaped(d["dx"], heads)}});
  d["dk"] =
      run("l2_norm", {{"x", shaped(raw, rows)}}, {}, {}, {{"dy", shaped(d["dk"], rows)}})["dx"];
  Array dx{rows, std::vector<double>(static_cast<size_t>(kTokens * kWidth))};
  for (const char* name : {"q", "k", "v"}) {
    const Array dy = shaped(d[std::string("d") + name], rows);
    Arrays through = run("matmul", {{"x", x}, {"w", p.at(name)}}, {}, {}, {{"dy", dy}});
    gradients[name] = through["dw"];
    for (size_t i = 0; i < dx.numbers.size(); ++i) dx.numbers[i] += through["dx"].numbers[i];
  }
  gradients["letters"] =
      run("embedding", {{"weight", p.at("letters")}}, {{"ids", ids}}, {}, {{"dy", dx}})["dweight"];
  return loss;
}

bool train() {
  Arrays p{{"letters", normal({kLetters, kWidth}, 1, 1)},
           {"q", normal({kWidth, kWidth}, 0.25, 2)},
           {"k", normal({kWidth, kWidth}, 0.25, 3)},
           {"v", normal({kWidth, kWidth}, 0.25, 4)},
           {"out", normal({kLetters, kWidth}, 0.25, 5)}};
  std::vector<int32_t> text;
  for (int64_t t = 0; t <= kTokens; ++t) text.push_back(static_cast<int32_t>(t * t % kLetters));
  double first = 0, last = 0;
  for (int i = 1; i <= 10; ++i) {
    Arrays gradients;
    last = step(p, text, gradients);
    if (i == 1) first = last;
    std::printf("step %d: loss %.4f\n", i, last);
    for (auto& [name, a] : p)
      for (size_t n = 0; n < a.numbers.size(); ++n)
        a.numbers[n] -= 0.15 * gradients.at(name).numbers[n];
  }
  return last < 0.8 * first;
}

// The gradient of every input of delta, along one random direction each.
bool check_gradient() {
  Arrays in;
  const std::map<std::string, std::vector<int64_t>> shapes = {
      {"q", {1, 70, 2, 4}}, {"k", {1, 70, 2, 4}}, {"v", {1, 70, 2, 3}}, {"beta", {1, 70, 2}}};
  unsigned seed = 10;
  for (const auto& [name, shape] : shapes) in[name] = normal(shape, 0.4, seed++);
  const Array dout = normal({1, 70, 2, 3}, 1, seed++);
  const Arrays d = run("delta", in, {}, {}, {{"dout", dout}});
  const auto value = [&](const Arrays& at) {
    const Array o = run("delta", at)["o"];
    double sum = 0;
    for (size_t i = 0; i < o.numbers.size(); ++i) sum += o.numbers[i] * dout.numbers[i];
    return sum;
  };
  bool good = true;
  for (const auto& [name, shape] : shapes) {
    const Array way = normal(shape, 1, seed++);
    constexpr double kStep = 1e-5;
    Arrays up = in, down = in;
    double expected = 0;
    for (size_t i = 0; i < way.numbers.size(); ++i) {
      up[name].numbers[i] += kStep * way.numbers[i];
      down[name].numbers[i] -= kStep * way.numbers[i];
      expected += d.at("d" + name).numbers[i] * way.numbers[i];
    }
    const double got = (value(up) - value(down)) / (2 * kStep);
    const double error = std::fabs(got - expected) / std::fabs(expected);
    std::printf("delta: d%s against differences: relative error %.1e\n", name.c_str(), error);
    good = good && error < 1e-6;
  }
  return good;
}

int main() try {
  std::printf("libweft %s, interface %d\n", weft_version(), weft_interface());
  const bool learned = train(), right = check_gradient();
  std::printf("%s\n", learned && right ? "all is well" : "FAILED");
  return learned && right ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
