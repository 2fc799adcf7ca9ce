// An operation seen at run time: by its name, its named tensors and its settings as text.
// `weft op`, the gradient certificate, the benchmark and the tests walk operations(); nothing else
// does. A folder puts itself on the list by one line in its cpu.cpp:
//   const Registered<Linear> registered;
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

using Tensors = std::map<std::string, Tensor>;        // by field name; absent ones are not in it
using Settings = std::map<std::string, std::string>;  // "scale" -> "0.125"

// An option of an operation: a flag of `weft op`, or an index tensor.
struct Setting {
  std::string name;
  std::string standard;  // its value where none is given; for an index tensor its shape letters
  std::string help;
  bool tensor = false;
};

// Inputs worth testing, f64, with the settings that go with them.
struct NamedCase {
  std::string name;
  Tensors inputs;  // index tensors included
  Settings settings;
};

// Numbers between two bounds.
struct Uniform {
  double low, high;
};

// What a benchmark runs at length T, and what it costs at least.
struct BenchCase {
  Tensors inputs;
  Settings settings;
  Flops flops;
};

// What a benchmark runs on a GPU: sizes, from which it draws the inputs there. Inputs are bf16, and
// f32 where their field is wide. kernels/contract/gpu_shapes.h makes the usual ones.
struct GpuShape {
  std::string name;                      // of its row, "retention B4 T4096 H16 K128 V128"
  std::map<std::string, int64_t> sizes;  // behind the letters of the fields; "W - 1" is a letter
  std::vector<std::string> with = {};    // the optional inputs that are there
  Settings settings = {};
  Flops flops = {};
  std::vector<std::string> constants = {};        // inputs whose gradient nobody asks for
  std::map<std::string, Uniform> uniform = {};    // inputs that are not normal numbers
  std::map<std::string, double> deviations = {};  // of those that are; 1 where it is not named
  Tensors index = {};                             // index tensors, on the CPU
  bool backward_reads_inputs = true;
};

class Operation {
 public:
  virtual ~Operation() = default;
  virtual std::string name() const = 0;
  virtual std::vector<Field> inputs() const = 0;
  virtual std::vector<Field> outputs() const = 0;
  virtual std::vector<Setting> settings() const = 0;
  virtual std::vector<Form> forms() const = 0;
  virtual std::vector<NamedCase> cases() const = 0;
  // Empty inputs where the operation has no benchmark.
  virtual BenchCase bench(int64_t length) const = 0;
  // Index tensors that forward() writes: makes room in `in` for those that are not given, and
  // returns their names.
  virtual std::vector<std::string> prepare_written(Tensors&, Settings&) const { return {}; }
  virtual bool has_cuda_form() const { return false; }
  // The shapes of the benchmark on a GPU; none where the operation names none.
  virtual std::vector<GpuShape> gpu_shapes() const { return {}; }

  // Throws Error on a tensor or setting that the operation does not have (naming the nearest), and
  // on a form that it lacks.
  virtual Tensors forward(Form form, const Tensors& in, const Settings& settings) const = 0;
  // `output_gradients` by gradient name ("dout", "dlse"; see gradient_name); an absent one is zero.
  // Returns the gradient of each input that is there and not among `constants`, by gradient name.
  virtual Tensors backward(Form form, const Tensors& in, const Settings& settings,
                           const Tensors& output_gradients,
                           const std::vector<std::string>& constants = {}) const = 0;
};

// "dx" for "x"; the gradient of "o" is "dout", since `do` is a keyword.
std::string gradient_name(const std::string& name);
// "[B, T, H, K]" as {"B", "T", "H", "K"}.
std::vector<std::string> letters_of(const std::string& shape);
std::string name_of(Form form);
Form form_from(const std::string& name);

// All operations, sorted by name. operation() throws Error that names the nearest.
const std::vector<const Operation*>& operations();
const Operation& operation(const std::string& name);

// Puts an operation on the list.
void add_operation(std::unique_ptr<Operation> op);

// Random numbers for cases: element i of stream `name`, standard normal, in row-major order.
Tensor normal(const Shape& shape, uint64_t seed, const std::string& name, double scale = 1);
// i32 [n], each in [0, limit), for benchmarks.
Tensor random_indices(int64_t n, int64_t limit);

}  // namespace weft::kernels
