#include "kernels/contract/operation.h"

#include <algorithm>

#include "core/random.h"
#include "core/text.h"

namespace weft::kernels {
namespace {

std::vector<std::unique_ptr<Operation>>& all() {
  static std::vector<std::unique_ptr<Operation>> list;
  return list;
}

}  // namespace

std::string gradient_name(const std::string& name) { return name == "o" ? "dout" : "d" + name; }

std::vector<std::string> letters_of(const std::string& shape) {
  std::vector<std::string> letters(1);
  for (size_t i = 1; i < shape.size() && shape[i] != ']'; ++i) {
    if (shape[i] != ',')
      letters.back() += shape[i];
    else
      letters.emplace_back(), ++i;
  }
  return letters;
}

std::string name_of(Form form) {
  switch (form) {
    case Form::naive:
      return "naive";
    case Form::recurrent:
      return "recurrent";
    case Form::chunkwise:
      return "chunkwise";
  }
  return "?";
}

Form form_from(const std::string& name) {
  for (const Form f : {Form::naive, Form::recurrent, Form::chunkwise})
    if (name == name_of(f)) return f;
  fail("unknown form \"", name, "\"; known: naive recurrent chunkwise");
}

void add_operation(std::unique_ptr<Operation> op) { all().push_back(std::move(op)); }

const std::vector<const Operation*>& operations() {
  static const std::vector<const Operation*> sorted = [] {
    std::vector<const Operation*> list;
    for (const auto& op : all()) list.push_back(op.get());
    std::sort(list.begin(), list.end(),
              [](const Operation* a, const Operation* b) { return a->name() < b->name(); });
    return list;
  }();
  return sorted;
}

const Operation& operation(const std::string& name) {
  std::vector<std::string> known;
  for (const Operation* op : operations()) {
    if (op->name() == name) return *op;
    known.push_back(op->name());
  }
  fail(unknown_name("operation", name, known));
}

Tensor normal(const Shape& shape, uint64_t seed, const std::string& name, double scale) {
  const Tensor t = empty(shape, Dtype::f64);
  const Random random(seed, stream_of(name));
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<double>()[i] = scale * random.normal(static_cast<uint64_t>(i));
  return t;
}

Tensor random_indices(int64_t n, int64_t limit) {
  const Tensor t = empty({n}, Dtype::i32);
  const Random random(5, stream_of("ids"));
  for (int64_t i = 0; i < n; ++i)
    t.data<int32_t>()[i] =
        static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * static_cast<double>(limit));
  return t;
}

}  // namespace weft::kernels
