// Reading HDF5 files, ours and those of other programs.
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>
#include <limits>
#include <set>

#include "core/child.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/hdf5_native.h"
#include "core/seal.h"
#include "core/sizes.h"
#include "core/system.h"
#include "core/text.h"

namespace weft {

using namespace h5;

namespace {

// Files without a seal that a child process has read whole: a suite of checks opens each many
// times, and a copy of this process costs more than the reading. A file that changed has another
// state.
using FileState = std::array<int64_t, 6>;
std::set<FileState>& sound_files() {
  static std::set<FileState> files;
  return files;
}
FileState state_of(const struct stat& s) {
  return {static_cast<int64_t>(s.st_dev),
          static_cast<int64_t>(s.st_ino),
          s.st_size,
          s.st_ctim.tv_sec,
          s.st_ctim.tv_nsec,
          s.st_mtim.tv_nsec};
}
bool known_sound(const struct stat& s) { return sound_files().count(state_of(s)) > 0; }
// A file that changed within the last seconds may change once more within one tick of the clock.
void remember_sound(const struct stat& s) {
  if (s.st_ctim.tv_sec + 2 < std::time(nullptr)) sound_files().insert(state_of(s));
}

// "a file", "an operation file".
std::string with_article(const std::string& noun) {
  // H of HDF5 is spelt with a vowel; a small h is not.
  const bool vowel = !noun.empty() && std::string("aeiouAEIOUH").find(noun[0]) != std::string::npos;
  return (vowel ? "an " : "a ") + noun;
}

constexpr int kMostDeep = 1000;  // groups within groups

}  // namespace

struct Hdf5Reader::State {
  std::string path, kind;
  Id file;

  [[noreturn]] void damaged(const std::string& what, const std::string& why) const {
    fail(path, ": ", what, " is damaged: ", why, "; use an earlier ",
         kind == "file" ? "copy of the file" : kind);
  }

  Id open(const std::string& name) const {
    return {H5Oopen(file, name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose};
  }

  // A link by name (soft, or to another file) whose target cannot be had: nothing of this file's
  // own.
  bool leads_nowhere(const std::string& name) const {
    H5L_info_t link{};
    return H5Lget_info(file, name.c_str(), &link, H5P_DEFAULT) >= 0 && link.type != H5L_TYPE_HARD;
  }

  // The object of that name, or none where HDF5 says that a link on the way is absent. What is
  // there and cannot be opened is no more absent than what can.
  Id find(const std::string& name) const {
    Id at = open("");
    if (!at.valid()) damaged("the file", reason());
    for (size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
      end = name.find('/', begin);
      const std::string step = name.substr(begin, end - begin), whole = name.substr(0, end);
      if (step.empty()) continue;
      if (H5Iget_type(at) != H5I_GROUP) return {};  // a tensor has nothing under it
      const htri_t there = H5Lexists(at, step.c_str(), H5P_DEFAULT);
      if (there < 0) damaged("\"" + whole + "\"", reason());
      if (there == 0) return {};
      Id next(H5Oopen(at, step.c_str(), H5P_DEFAULT), H5Oclose);
      if (!next.valid()) unreadable(whole, reason());
      at = std::move(next);
    }
    return at;
  }

  bool exists(const std::string& name) const { return find(name).valid(); }

  [[noreturn]] void unreadable(const std::string& name, const std::string& why) const {
    require(!leads_nowhere(name), path, ": \"", name, "\" is a link to nothing that is there");
    damaged("\"" + name + "\"", why);
  }

  H5I_type_t kind_of(const std::string& name) const {
    const Id object = find(name);
    return object.valid() ? H5Iget_type(object) : H5I_BADID;
  }

  std::vector<std::string> links(const std::string& group) const {
    std::vector<std::string> names;
    const Id opened = open(group);
    if (!opened.valid() || !link_names(opened, names))
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
      return {name, Kind::unreadable,
              leads_nowhere(name) ? "a link to nothing" : "damaged: " + why};
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

  std::string identity_of(hid_t object, const std::string& name) const {
    std::string found = identity(object);
    if (found.empty()) damaged("\"" + name + "\"", reason());
    return found;
  }

  struct Listed {
    std::vector<TensorInfo> tensors;
    std::vector<std::string> groups;  // itself first
  };

  // What lies under a group, each group once: files of other programs may hold one within itself,
  // or twice, under the shorter of its names.
  Listed list(const std::string& group) const {
    Listed found;
    std::set<std::string> seen{identity_of(open(group), group)};
    found.groups.push_back(group);
    for (size_t i = 0; i < found.groups.size(); ++i) {
      for (const std::string& name : links(std::string(found.groups[i]))) {
        const Id object = open(name);
        if (!object.valid()) {
          const std::string why = reason();
          if (leads_nowhere(name)) continue;
          damaged("\"" + name + "\"", why);
        }
        TensorInfo info;
        info.name = name;
        if (H5Iget_type(object) == H5I_DATASET && describe(object, info))
          found.tensors.push_back(info);
        if (H5Iget_type(object) == H5I_GROUP && seen.insert(identity_of(object, name)).second)
          found.groups.push_back(name);
      }
      require(std::count(found.groups.back().begin(), found.groups.back().end(), '/') < kMostDeep,
              path, ": its groups lie more than ", kMostDeep, " deep in each other");
    }
    return found;
  }

  std::string no_such(const std::string& name) const {
    std::vector<std::string> names;
    for (const TensorInfo& info : list("").tensors) names.push_back(info.name);
    const std::string near = nearest_name(name, names);
    return concat(path, ": there is no tensor \"", name, "\"; ",
                  names.empty()      ? "it holds none"
                  : !near.empty()    ? concat("did you mean \"", near, "\"?")
                  : names.size() < 9 ? concat("it holds ", joined(names))
                                     : concat("it holds ", names.size(), " others"));
  }

  Id dataset(const std::string& name, TensorInfo& info) const {
    Id object = find(name);
    if (!object.valid()) throw Error(no_such(name));
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
    if (!has_attribute(dataset, info.name, kChecksum)) return;
    Attribute stored;
    if (!get_attribute(dataset, kChecksum, stored)) {
      if (is_foreign_attribute(dataset, kChecksum)) return;
      damaged("tensor \"" + info.name + "\"", reason());
    }
    const auto* text = std::get_if<std::string>(&stored);
    if (text && text->size() == 16 && *text != to_hex(hash))
      damaged("tensor \"" + info.name + "\"", "its checksum does not match");
  }

  uint64_t hash_of(hid_t dataset, const TensorInfo& info) const {
    const int64_t rows = info.shape.dims() > 0 ? info.shape[0] : 1;
    const int64_t row = info.shape.numel() / std::max<int64_t>(1, rows) * size_of(info.dtype);
    const int64_t step = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, row));
    std::vector<char> piece(static_cast<size_t>(std::min(step, rows) * row));
    Hash64 hash;
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t end = std::min(rows, begin + step);
      read(dataset, info, begin, end, piece.data());
      hash.update(piece.data(), static_cast<size_t>((end - begin) * row));
    }
    return hash.digest();
  }

  bool has_attribute(hid_t owner, const std::string& object, const std::string& key) const {
    const htri_t there = H5Aexists(owner, key.c_str());
    if (there < 0) damaged("the list of attributes of \"" + object + "\"", reason());
    return there > 0;
  }

  std::map<std::string, Attribute> attributes(hid_t owner, const std::string& object) const {
    std::vector<std::string> names;
    if (!names_of_attributes(owner, names))
      damaged("the list of attributes of \"" + object + "\"", reason());
    std::map<std::string, Attribute> found;
    for (const std::string& name : names) {
      Attribute value;
      if (get_attribute(owner, name, value))
        found.emplace(name, std::move(value));
      else if (!is_foreign_attribute(owner, name))
        wrong_attribute(object, name, "damaged: " + reason());
    }
    return found;
  }

  // An attribute's object, open; throws where there is none.
  Id attribute_owner(const std::string& object) const {
    Id owner = find(object);
    require(owner.valid(), path, ": there is no group or tensor \"", object, "\"");
    return owner;
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

  void open_file() {
    const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    H5Pset_file_locking(access, false, true);
    file = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
    if (file.valid()) return;
    const std::string why = reason();
    std::error_code ignored;
    if (why.find("truncated") != std::string::npos)
      damaged("the file", concat("it is truncated, only ",
                                 std::filesystem::file_size(path, ignored), " bytes are left"));
    require(H5Fis_hdf5(path.c_str()) > 0, path, ": is not an HDF5 file, expected ",
            with_article(kind), kind == "file" ? " in HDF5" : " written by weft");
    damaged("the file", why);
  }

  // Reads all there is: lists, attributes, tensors. Throws Error for the first that is damaged.
  // `seal` is what lies at the file's end.
  void read_all(Seal seal) const {
    const Id root = attribute_owner("");
    const Listed all = list("");
    for (const std::string& group : all.groups) attributes(attribute_owner(group), group);
    for (const TensorInfo& info : all.tensors) {
      const Id object = open(info.name);
      if (!object.valid()) unreadable(info.name, reason());
      attributes(object, info.name);
      // What was never written, or packs as nothing does, takes longer to read than to trust.
      const auto stored = static_cast<double>(H5Dget_storage_size(object));
      if (double(info.shape.numel()) * double(size_of(info.dtype)) <= 64 * stored + 1e6)
        compare(object, info, hash_of(object, info));
    }
    if (seal == Seal::none && has_attribute(root, "", kSealed))
      damaged("the file", concat("its seal, the last 64 bytes, is missing: it was cut, or another "
                                 "program changed it (which then deletes the attribute \"",
                                 kSealed, "\")"));
  }

  // HDF5 itself crashes on some damaged files. It sees in this process only what has a seal that
  // holds, or what a child process has read before.
  void check_file() const {
    struct stat status {};
    require_call(code_of(::stat(path.c_str(), &status)), path, ": cannot be read");
    require(!S_ISDIR(status.st_mode), path, ": is a folder, expected ", with_article(kind));
    require(S_ISREG(status.st_mode), path, ": is a device or a pipe, expected ",
            with_article(kind));
    if (known_sound(status)) return;
    const Seal seal = seal_of(path);
    if (seal == Seal::holds) return;
    const auto read_it = [&] { Hdf5Reader(path, kind, Unchecked{}).state_->read_all(seal); };
    const ChildResult child = in_child(read_it, 60 + status.st_size / 10'000'000);
    if (!child.ended_itself) damaged("the file", "HDF5 cannot read it: " + child.message);
    require(child.message.empty(), child.message);
    if (seal == Seal::broken) damaged("the file", "its bytes do not match its seal");
    remember_sound(status);
  }
};

Hdf5Reader::Hdf5Reader(const std::string& path, const std::string& kind)
    : state_(std::make_unique<State>()) {
  const Guard guard;  // also over the fork: no other thread is within HDF5 then
  state_->path = path, state_->kind = kind;
  state_->check_file();
  state_->open_file();
}

Hdf5Reader::Hdf5Reader(const std::string& path, const std::string& kind, Unchecked)
    : state_(std::make_unique<State>()) {
  const Guard guard;
  state_->path = path, state_->kind = kind;
  state_->open_file();
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
  std::vector<TensorInfo> found = state_->list(group).tensors;
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return found;
}

std::vector<std::string> Hdf5Reader::groups(const std::string& group) const {
  const Guard guard;
  require(state_->kind_of(group) == H5I_GROUP, state_->path, ": there is no group \"", group, "\"");
  std::vector<std::string> names = state_->links(group);
  std::erase_if(names, [&](auto& name) {
    const Id object = state_->open(name);
    if (!object.valid() && !state_->leads_nowhere(name)) state_->unreadable(name, reason());
    return !object.valid() || H5Iget_type(object) != H5I_GROUP;
  });
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
  state_->compare(dataset, info, state_->hash_of(dataset, info));
}

uint64_t Hdf5Reader::hash(const std::string& name) const {
  const Guard guard;
  TensorInfo info;
  const Id dataset = state_->dataset(name, info);
  return state_->hash_of(dataset, info);
}

bool Hdf5Reader::has_attribute(const std::string& object, const std::string& key) const {
  const Guard guard;
  const Id owner = state_->find(object);
  return owner.valid() && state_->has_attribute(owner, object, key);
}

std::vector<std::string> Hdf5Reader::attribute_names(const std::string& object) const {
  const Guard guard;
  const Id owner = state_->attribute_owner(object);
  std::vector<std::string> names;
  if (!names_of_attributes(owner, names))
    state_->damaged("the list of attributes of \"" + object + "\"", reason());
  return names;
}

std::map<std::string, Attribute> Hdf5Reader::attributes(const std::string& object) const {
  const Guard guard;
  return state_->attributes(state_->attribute_owner(object), object);
}

Attribute Hdf5Reader::attribute(const std::string& object, const std::string& key) const {
  const Guard guard;
  const Id owner = state_->attribute_owner(object);
  if (!state_->has_attribute(owner, object, key)) state_->wrong_attribute(object, key, "missing");
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
