#include "core/hdf5_written.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/hash.h"
#include "core/hdf5_native.h"

namespace weft::h5 {
namespace {

// A name has no slash before its first step and the root none at all.
std::string plain(std::string name) {
  name.erase(0, std::min(name.size(), name.find_first_not_of('/')));
  return name;
}

bool same(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Bit for bit: NaN is itself, and 0 is not -0.
bool same(const Attribute& a, const Attribute& b) {
  if (a.index() != b.index()) return false;
  if (const auto* x = std::get_if<double>(&a)) return same(*x, std::get<double>(b));
  if (const auto* x = std::get_if<std::vector<double>>(&a)) {
    const auto& y = std::get<std::vector<double>>(b);
    return std::equal(x->begin(), x->end(), y.begin(), y.end(),
                      [](double i, double j) { return same(i, j); });
  }
  return a == b;
}

std::string where(const std::string& object) {
  return object.empty() ? "the root" : "\"" + object + "\"";
}

void compare_attributes(const std::string& object, const std::map<std::string, Attribute>& found,
                        const std::map<std::string, Attribute>& meant) {
  for (const auto& [key, value] : meant) {
    const auto there = found.find(key);
    require(there != found.end(), "attribute \"", key, "\" of ", where(object), " is missing");
    require(same(there->second, value), "attribute \"", key, "\" of ", where(object),
            " reads otherwise than it was written");
  }
  for (const auto& [key, value] : found)
    require(meant.count(key) > 0, "attribute \"", key, "\" of ", where(object),
            " was never written");
}

}  // namespace

void Written::tensor(const std::string& name, Dtype dtype, const Shape& shape, uint64_t hash) {
  tensors_[plain(name)] = {dtype, shape, hash};
  attributes_[plain(name)][kChecksum] = to_hex(hash);
}

void Written::attribute(const std::string& object, const std::string& key, const Attribute& value) {
  attributes_[plain(object)][key] = value;
}

void Written::compare(const Hdf5Reader& file) const {
  for (const auto& [object, meant] : attributes_)
    compare_attributes(object, file.attributes(object), meant);
  std::set<std::string> found;
  for (const TensorInfo& info : file.tensors()) {
    const auto meant = tensors_.find(info.name);
    require(meant != tensors_.end(), "tensor \"", info.name, "\" was never written");
    require(meant->second.dtype == info.dtype && meant->second.shape == info.shape, "tensor \"",
            info.name, "\" is ", info.dtype, " ", info.shape, ", written as ", meant->second.dtype,
            " ", meant->second.shape);
    require(meant->second.hash == file.hash(info.name), "tensor \"", info.name,
            "\" reads otherwise than it was written");
    found.insert(info.name);
  }
  for (const auto& [name, meant] : tensors_)
    require(found.count(name) > 0, "tensor \"", name, "\" is missing");
}

}  // namespace weft::h5
