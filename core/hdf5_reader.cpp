// Reading HDF5 files, ours and those of other programs.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "core/hash.h"
#include "core/hdf5_native.h"
#include "core/sizes.h"
#include "core/text.h"

namespace weft {

using namespace h5;

struct Hdf5Reader::State {
  std::string path, kind;
  Id file;

  [[noreturn]] void damaged(const std::string& what, const std::string& why) const {
    fail(path, ": ", what, " is damaged: ", why, "; use an earlier ",
         kind == "file" ? "copy of the file" : kind);
  }

  bool exists(const std::string& name) const {
    if (name.empty() || name == "/") return true;
    // Each step must be there: HDF5 takes a missing parent for an error.
    for (size_t at = name.find('/', 1);; at = name.find('/', at + 1)) {
      if (H5Lexists(file, name.substr(0, at).c_str(), H5P_DEFAULT) <= 0) return false;
      if (at == std::string::npos) return H5Oexists_by_name(file, name.c_str(), H5P_DEFAULT) > 0;
    }
  }

  Id open(const std::string& name) const {
    return {H5Oopen(file, name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose};
  }

  H5I_type_t kind_of(const std::string& name) const {
    if (!exists(name)) return H5I_BADID;
    const Id object = open(name);
    return object.valid() ? H5Iget_type(object) : H5I_BADID;
  }

  std::vector<std::string> links(const std::string& group) const {
    std::vector<std::string> names;
    const Id opened = open(group);
    const auto add = [](hid_t, const char* name, const H5L_info_t*, void* to) -> herr_t {
      static_cast<std::vector<std::string>*>(to)->push_back(name);
      return 0;
    };
    if (!opened.valid() || H5Literate(opened, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names) < 0)
      damaged(group.empty() ? "its list of names" : "group \"" + group + "\"", reason());
    std::string prefix = group;
    while (!prefix.empty() && prefix.back() == '/') prefix.pop_back();
    for (std::string& name : names) name = prefix.empty() ? name : prefix + "/" + name;
    return names;
  }

  // Shape and dtype of an open dataset; false if it is no tensor. A tensor that no memory holds is
  // refused here, so that nobody multiplies its sizes.
  bool describe(hid_t dataset, TensorInfo& info) const {
    const Id type(H5Dget_type(dataset), H5Tclose);
    const Id space(H5Dget_space(dataset), H5Sclose);
    if (!type.valid() || !space.valid() || !dtype_of_type(type, info.dtype)) return false;
    const int dims = H5Sget_simple_extent_ndims(space);
    if (dims < 0 || dims > Shape::kMax || H5Sget_simple_extent_type(space) == H5S_NULL)
      return false;
    std::vector<hsize_t> sizes(static_cast<size_t>(dims));
    H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
    constexpr auto kMost = static_cast<hsize_t>(std::numeric_limits<int64_t>::max());
    for (hsize_t& size : sizes) size = std::min(size, kMost);
    const Shape shape(std::vector<int64_t>(sizes.begin(), sizes.end()));
    try {
      (void)bytes_of(shape, info.dtype);
    } catch (const TooMany& error) {
      fail(path, ": tensor \"", info.name, "\": ", error.what());
    }
    info.shape = shape;
    return true;
  }

  // What an open dataset that is no tensor holds.
  std::string description(hid_t dataset) const {
    const Id type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
    if (!type.valid() || !space.valid()) return "damaged: " + reason();
    if (H5Sget_simple_extent_type(space) == H5S_NULL) return "a dataset without numbers";
    Dtype dtype;
    if (!dtype_of_type(type, dtype)) return description_of_type(type);
    return concat("a dataset of ", H5Sget_simple_extent_ndims(space), " dimensions, more than ",
                  Shape::kMax);
  }

  Hdf5Entry entry(const std::string& name) const {
    using Kind = Hdf5Entry::Kind;
    const Id object = open(name);
    if (!object.valid()) {
      const std::string why = reason();
      return {name, Kind::unreadable, exists(name) ? "damaged: " + why : "a link to nothing"};
    }
    TensorInfo info;
    info.name = name;
    switch (H5Iget_type(object)) {
      case H5I_GROUP:
        return {name, Kind::group, "a group"};
      case H5I_DATASET:
        if (describe(object, info)) return {name, Kind::tensor, "a tensor"};
        return {name, Kind::unreadable, description(object)};
      case H5I_DATATYPE:
        return {name, Kind::unreadable, "a named type"};
      default:
        return {name, Kind::unreadable, "neither a tensor nor a group"};
    }
  }

  void list(const std::string& group, std::vector<TensorInfo>& found, int depth) const {
    if (depth > 32) return;  // foreign files may hold a group within itself
    for (const std::string& name : links(group)) {
      const Id object = open(name);
      if (!object.valid()) {
        if (!exists(name)) continue;  // a link to nothing
        damaged("\"" + name + "\"", reason());
      }
      TensorInfo info;
      info.name = name;
      if (H5Iget_type(object) == H5I_GROUP)
        list(name, found, depth + 1);
      else if (H5Iget_type(object) == H5I_DATASET && describe(object, info))
        found.push_back(info);
    }
  }

  std::string no_such(const std::string& name) const {
    std::vector<TensorInfo> found;
    list("", found, 0);
    std::vector<std::string> names;
    for (const TensorInfo& info : found) names.push_back(info.name);
    return concat(path, ": there is no tensor \"", name, "\"",
                  names.empty() ? "; it holds none"
                                : "; did you mean \"" + nearest_name(name, names) + "\"?");
  }

  Id dataset(const std::string& name, TensorInfo& info) const {
    if (!exists(name)) throw Error(no_such(name));
    Id object = open(name);
    if (!object.valid()) damaged("tensor \"" + name + "\"", reason());
    require(H5Iget_type(object) == H5I_DATASET, path, ": \"", name,
            "\" is a group, expected a tensor");
    info.name = name;
    require(describe(object, info), path, ": \"", name, "\" is no tensor of numbers with at most ",
            Shape::kMax, " dimensions");
    return object;
  }

  // Rows [begin, end) of the first dimension; a scalar has the one row 0.
  void read(hid_t dataset, const TensorInfo& info, int64_t begin, int64_t end, void* to) const {
    if (begin == end || info.shape.numel() == 0) return;
    Id space(H5Dget_space(dataset), H5Sclose), memory(H5Screate(H5S_SCALAR), H5Sclose);
    if (info.shape.dims() > 0) {
      auto count = dims_of(info.shape);
      count[0] = static_cast<hsize_t>(end - begin);
      std::vector<hsize_t> start(count.size(), 0);
      start[0] = static_cast<hsize_t>(begin);
      H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
      memory = Id(H5Screate_simple(info.shape.dims(), count.data(), nullptr), H5Sclose);
    }
    if (H5Dread(dataset, file_type(info.dtype), memory, space, H5P_DEFAULT, to) < 0)
      damaged("tensor \"" + info.name + "\"", reason());
  }

  void compare(hid_t dataset, const TensorInfo& info, uint64_t hash) const {
    const std::string stored = stored_checksum(dataset);
    if (!stored.empty() && stored != to_hex(hash))
      damaged("tensor \"" + info.name + "\"", "its checksum does not match");
  }

  // An attribute's object, open; throws where there is none.
  Id attribute_owner(const std::string& object) const {
    require(exists(object), path, ": there is no group or tensor \"", object, "\"");
    Id opened = open(object);
    if (!opened.valid()) damaged("\"" + object + "\"", reason());
    return opened;
  }

  [[noreturn]] void unreadable_attribute(const std::string& object, const std::string& key,
                                         hid_t owner) const {
    const std::string why = reason();
    const Id attribute(H5Aopen(owner, key.c_str(), H5P_DEFAULT), H5Aclose);
    if (!attribute.valid()) wrong_attribute(object, key, "damaged: " + why);
    const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
    const H5T_class_t kind = H5Tget_class(type);
    const bool legible = kind == H5T_STRING || kind == H5T_INTEGER || kind == H5T_ENUM ||
                         kind == H5T_FLOAT || kind == H5T_NO_CLASS;
    if (!space.valid()) wrong_attribute(object, key, "damaged: " + why);
    if (H5Sget_simple_extent_type(space) == H5S_NULL)
      wrong_attribute(object, key, "empty, expected text or a number");
    if (legible) wrong_attribute(object, key, "damaged: " + why);
    wrong_attribute(object, key, description_of_type(type) + ", expected text or a number");
  }

  [[noreturn]] void wrong_attribute(const std::string& object, const std::string& key,
                                    const std::string& what) const {
    fail(path, ": attribute \"", key, "\"", object.empty() ? "" : " of \"" + object + "\"", " is ",
         what);
  }
};

Hdf5Reader::Hdf5Reader(const std::string& path, const std::string& kind)
    : state_(std::make_unique<State>()) {
  const Guard guard;
  State& s = *state_;
  s.path = path, s.kind = kind;
  std::error_code ignored;
  require(!std::filesystem::is_directory(path, ignored), path, ": is a folder, expected a ", kind);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, path, ": cannot be read: ", std::strerror(errno));
  ::close(fd);
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access, false, true);
  s.file = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (s.file.valid()) return;
  const std::string why = reason();
  if (why.find("truncated") != std::string::npos)
    s.damaged("the file", concat("it is truncated, only ",
                                 std::filesystem::file_size(path, ignored), " bytes are left"));
  require(H5Fis_hdf5(path.c_str()) > 0, path, ": is not an HDF5 file, expected a ", kind,
          kind == "file" ? " in HDF5" : " written by weft");
  s.damaged("the file", why);
}

Hdf5Reader::~Hdf5Reader() {
  const Guard guard;
  state_.reset();
}
Hdf5Reader::Hdf5Reader(Hdf5Reader&&) noexcept = default;
Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

const std::string& Hdf5Reader::path() const { return state_->path; }

std::vector<TensorInfo> Hdf5Reader::tensors(const std::string& group) const {
  const Guard guard;
  require(state_->kind_of(group) == H5I_GROUP, state_->path, ": there is no group \"", group, "\"");
  std::vector<TensorInfo> found;
  state_->list(group, found, 0);
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return found;
}

std::vector<std::string> Hdf5Reader::groups(const std::string& group) const {
  const Guard guard;
  require(state_->kind_of(group) == H5I_GROUP, state_->path, ": there is no group \"", group, "\"");
  std::vector<std::string> names = state_->links(group);
  std::erase_if(names, [&](auto& name) { return state_->kind_of(name) != H5I_GROUP; });
  return names;
}

std::vector<Hdf5Entry> Hdf5Reader::entries(const std::string& group) const {
  const Guard guard;
  require(state_->kind_of(group) == H5I_GROUP, state_->path, ": there is no group \"", group, "\"");
  std::vector<Hdf5Entry> found;
  for (const std::string& name : state_->links(group)) found.push_back(state_->entry(name));
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return found;
}

bool Hdf5Reader::has_tensor(const std::string& name) const {
  const Guard guard;
  return state_->kind_of(name) == H5I_DATASET;
}

bool Hdf5Reader::has_group(const std::string& name) const {
  const Guard guard;
  return state_->kind_of(name) == H5I_GROUP;
}

TensorInfo Hdf5Reader::info(const std::string& name) const {
  const Guard guard;
  TensorInfo info;
  state_->dataset(name, info);
  return info;
}

Tensor Hdf5Reader::tensor(const std::string& name) const {
  const Guard guard;
  TensorInfo info;
  const Id dataset = state_->dataset(name, info);
  const Tensor t = empty(info.shape, info.dtype);
  state_->read(dataset, info, 0, info.shape.dims() > 0 ? info.shape[0] : 1, t.raw());
  state_->compare(dataset, info,
                  hash64(t.raw(), static_cast<size_t>(t.numel() * size_of(info.dtype))));
  return t;
}

namespace {

void check_rows(const std::string& path, const TensorInfo& info, int64_t begin, int64_t end) {
  require(info.shape.dims() > 0 && begin >= 0 && begin <= end && end <= info.shape[0], path,
          ": tensor \"", info.name, "\" of shape ", info.shape, " has no rows [", begin, ", ", end,
          ")");
}

}  // namespace

Tensor Hdf5Reader::rows(const std::string& name, int64_t begin, int64_t end) const {
  const Guard guard;
  TensorInfo info;
  const Id dataset = state_->dataset(name, info);
  check_rows(state_->path, info, begin, end);
  Shape shape = info.shape;
  shape[0] = end - begin;
  const Tensor t = empty(shape, info.dtype);
  state_->read(dataset, info, begin, end, t.raw());
  return t;
}

void Hdf5Reader::read_rows(const std::string& name, int64_t begin, int64_t end, void* to) const {
  const Guard guard;
  TensorInfo info;
  const Id dataset = state_->dataset(name, info);
  check_rows(state_->path, info, begin, end);
  state_->read(dataset, info, begin, end, to);
}

void Hdf5Reader::verify() const {
  for (const TensorInfo& info : tensors()) verify(info.name);
}

void Hdf5Reader::verify(const std::string& name) const {
  const Guard guard;
  TensorInfo info;
  const Id dataset = state_->dataset(name, info);
  const int64_t rows = info.shape.dims() > 0 ? info.shape[0] : 1;
  const int64_t row = info.shape.numel() / std::max<int64_t>(1, rows) * size_of(info.dtype);
  const int64_t step = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, row));
  std::vector<char> piece(static_cast<size_t>(std::min(step, rows) * row));
  Hash64 hash;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    state_->read(dataset, info, begin, end, piece.data());
    hash.update(piece.data(), static_cast<size_t>((end - begin) * row));
  }
  state_->compare(dataset, info, hash.digest());
}

bool Hdf5Reader::has_attribute(const std::string& object, const std::string& key) const {
  const Guard guard;
  return state_->exists(object) && H5Aexists(state_->open(object), key.c_str()) > 0;
}

std::vector<std::string> Hdf5Reader::attribute_names(const std::string& object) const {
  const Guard guard;
  const Id owner = state_->attribute_owner(object);
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5A_info_t*, void* to) -> herr_t {
    static_cast<std::vector<std::string>*>(to)->push_back(name);
    return 0;
  };
  if (H5Aiterate2(owner, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names) < 0)
    state_->damaged("the list of attributes of \"" + object + "\"", reason());
  return names;
}

std::map<std::string, Attribute> Hdf5Reader::attributes(const std::string& object) const {
  const Guard guard;
  const Id owner = state_->attribute_owner(object);
  std::map<std::string, Attribute> found;
  for (const std::string& name : attribute_names(object)) {
    Attribute value;
    if (get_attribute(owner, name, value)) found.emplace(name, std::move(value));
  }
  return found;
}

Attribute Hdf5Reader::attribute(const std::string& object, const std::string& key) const {
  const Guard guard;
  const Id owner = state_->attribute_owner(object);
  if (H5Aexists(owner, key.c_str()) <= 0) state_->wrong_attribute(object, key, "missing");
  Attribute value;
  if (!get_attribute(owner, key, value)) state_->unreadable_attribute(object, key, owner);
  return value;
}

std::string Hdf5Reader::text(const std::string& object, const std::string& key) const {
  const Attribute value = attribute(object, key);
  if (const auto* x = std::get_if<std::string>(&value)) return *x;
  state_->wrong_attribute(object, key, "no text, expected one");
}

int64_t Hdf5Reader::integer(const std::string& object, const std::string& key) const {
  const Attribute value = attribute(object, key);
  if (const auto* x = std::get_if<int64_t>(&value)) return *x;
  state_->wrong_attribute(object, key, "no integer, expected one");
}

double Hdf5Reader::number(const std::string& object, const std::string& key) const {
  const Attribute value = attribute(object, key);
  if (const auto* x = std::get_if<double>(&value)) return *x;
  if (const auto* x = std::get_if<int64_t>(&value)) return static_cast<double>(*x);
  state_->wrong_attribute(object, key, "no number, expected one");
}

std::vector<std::string> Hdf5Reader::texts(const std::string& object,
                                           const std::string& key) const {
  const Attribute value = attribute(object, key);
  if (const auto* x = std::get_if<std::vector<std::string>>(&value)) return *x;
  state_->wrong_attribute(object, key, "no list of texts, expected one");
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return concat(major, ".", minor, ".", release);
}

}  // namespace weft
