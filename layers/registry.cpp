// Parameters from a seed and their names, and the list of mixers.

#include "core/parallel.h"
#include "core/random.h"
#include "core/text.h"
#include "layers/layer.h"

namespace weft::layers {
namespace {

std::map<std::string, Maker>& makers() {
  static std::map<std::string, Maker> list;
  return list;
}

double value_of(const Init& init, const Random& random, int64_t i) {
  const auto index = static_cast<uint64_t>(i);
  switch (init.kind) {
    case Init::Kind::constant:
      return init.a;
    case Init::Kind::normal:
      return init.a * random.normal(index);
    case Init::Kind::uniform:
      return init.a + (init.b - init.a) * random.uniform(index);
    case Init::Kind::function:
      break;
  }
  return init.of(i, random.uniform(index));
}

void fill(const Tensor& t, const Init& init, const Random& random) {
  for_dtype(t.dtype(), [&]<class Real>() {
    Real* const to = t.data<Real>();
    parallel_ranges(t.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double value = value_of(init, random, i);
        if constexpr (std::is_same_v<Real, double>)
          to[i] = value;
        else
          to[i] = Real(static_cast<float>(value));
      }
    });
  });
}

// Made on the CPU, so that a seed gives the same numbers on every device.
Tensor numbers(const Shape& shape, Dtype dtype, Device device, const Init& init,
               const Random& random) {
  if (device.is_meta()) return empty(shape, dtype, device);
  const Tensor t = empty(shape, dtype);
  fill(t, init, random);
  return t.to(device);
}

// Those of a model that only teaches are counted apart.
std::string owner_of_parameters() {
  return current_owner() == "teacher" ? "teacher" : "parameters";
}

}  // namespace

Builder::Builder(Dtype dtype, Device device, uint64_t seed, std::vector<Parameter>* list)
    : dtype_(dtype),
      device_(device),
      seed_(seed),
      list_(list),
      names_(std::make_shared<std::unordered_set<std::string>>()) {
  for (const Parameter& p : *list) names_->insert(p.name);
}

Var Builder::parameter(const std::string& name, const Shape& shape, const Init& init,
                       bool decay) const {
  const OwnerScope owner(owner_of_parameters());
  const std::string full = path_ + name;
  require(names_->insert(full).second, "two parameters are named ", full);
  const Dtype exact = dtype_ == Dtype::bf16 ? Dtype::f32 : dtype_;
  const Tensor master = numbers(shape, exact, device_, init, Random(seed_, stream_of(full)));
  const Var var = Var::leaf(master.to(dtype_));
  list_->push_back({full, var, master, decay && shape.dims() > 1, part_});
  return var;
}

Tensor Builder::buffer(const Shape& shape, const std::function<double(int64_t)>& value) const {
  const OwnerScope owner(owner_of_parameters());
  return numbers(shape, dtype_, device_,
                 Init::function([&value](int64_t i, double) { return value(i); }), Random(0));
}

Builder Builder::within(const std::string& path) const {
  Builder b = *this;
  b.path_ += path + ".";
  return b;
}

Builder Builder::wide() const {
  Builder b = *this;
  if (dtype_ == Dtype::bf16) b.dtype_ = Dtype::f32;
  return b;
}

Builder Builder::part(const std::string& name) const {
  Builder b = *this;
  b.part_ = name;
  return b;
}

int64_t State::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, t] : tensors) sum += t.numel() * size_of(t.dtype());
  for (const State& part : parts) sum += part.bytes();
  return sum;
}

void add_mixer(const std::string& name, Maker maker) {
  require(makers().emplace(name, std::move(maker)).second, "two mixers are named ", name);
}

std::vector<std::string> mixer_names() {
  std::vector<std::string> names;
  for (const auto& [name, maker] : makers()) names.push_back(name);
  return names;
}

const Maker& mixer_maker(const std::string& name) {
  const auto found = makers().find(name);
  if (found == makers().end()) fail(unknown_name("mixer", name, mixer_names()));
  return found->second;
}

}  // namespace weft::layers
