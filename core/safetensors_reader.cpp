// Reading safetensors. A header is checked as a whole before any tensor is read.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "core/sizes.h"
#include "core/text.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMostHeader = 100'000'000;  // bytes, as the format's own library
constexpr const char* kMetadata = "__metadata__";
constexpr const char* kFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// --- Types ---------------------------------------------------------------------------------------

enum class Kind { real, whole, neither };

struct Type {
  const char* name;
  int bits;
  Kind kind;
  Dtype nearest;  // of what is real or whole
};

constexpr Type kTypes[] = {
    {"F64", 64, Kind::real, Dtype::f64},       {"F32", 32, Kind::real, Dtype::f32},
    {"F16", 16, Kind::real, Dtype::f32},       {"BF16", 16, Kind::real, Dtype::bf16},
    {"I64", 64, Kind::whole, Dtype::i64},      {"U64", 64, Kind::whole, Dtype::i64},
    {"I32", 32, Kind::whole, Dtype::i32},      {"U32", 32, Kind::whole, Dtype::i64},
    {"I16", 16, Kind::whole, Dtype::i32},      {"U16", 16, Kind::whole, Dtype::i32},
    {"I8", 8, Kind::whole, Dtype::i32},        {"U8", 8, Kind::whole, Dtype::u8},
    {"BOOL", 8, Kind::whole, Dtype::u8},       {"C64", 64, Kind::neither, Dtype::f64},
    {"F8_E4M3", 8, Kind::neither, Dtype::f32}, {"F8_E5M2", 8, Kind::neither, Dtype::f32},
    {"F8_E8M0", 8, Kind::neither, Dtype::f32}, {"F6_E2M3", 6, Kind::neither, Dtype::f32},
    {"F6_E3M2", 6, Kind::neither, Dtype::f32}, {"F4", 4, Kind::neither, Dtype::f32}};

const Type* type_of(const std::string& name) {
  for (const Type& type : kTypes)
    if (type.name == name) return &type;
  return nullptr;
}

std::string known_types() {
  std::vector<std::string> names;
  for (const Type& type : kTypes) names.emplace_back(type.name);
  return joined(names, " ");
}

// A name in one line, whatever it holds.
std::string quoted(const std::string& name) { return json_line(name); }

void read_bytes(const Descriptor& file, const std::string& where, int64_t at, char* to, int64_t n) {
  while (n > 0) {
    const ssize_t got = ::pread(file.get(), to, static_cast<size_t>(n), at);
    const int code = code_of(got);
    if (code == EINTR) continue;
    require_call(code, where, ": cannot be read");
    require(got > 0, where, ": cannot be read: the file became shorter");
    to += got, at += got, n -= got;
  }
}

// --- The header ----------------------------------------------------------------------------------

// What a file is that is not of the format, and what to do; "" where its begin says nothing.
std::string foreign_kind(std::string_view begin) {
  const bool pickle = begin.size() > 1 && begin[0] == '\x80' && begin[1] >= 2 && begin[1] <= 5;
  if (pickle || begin.starts_with("PK\x03\x04"))
    return "is a pickle of PyTorch, which can run any program when it is read, and so is never "
           "read; save it with safetensors.torch.save_file where it comes from";
  if (begin.starts_with("version https://git-lfs"))
    return "is a pointer of git-lfs and not the file itself; fetch the file with `git lfs pull`";
  if (begin.starts_with("\x89HDF\r\n\x1a\n")) return "is an HDF5 file, expected safetensors";
  if (begin.starts_with("GGUF")) return "is a GGUF file, expected safetensors";
  if (begin.starts_with("{")) return "is JSON, expected safetensors or a folder that holds them";
  if (begin.starts_with("<")) return "is a web page, expected safetensors";
  return "";
}

class Header {
 public:
  Header(const std::string& path, const Descriptor& file) : path_(path), file_(file) {
    struct stat status {};
    require_call(code_of(::fstat(file.get(), &status)), path, ": cannot be read");
    require(!S_ISDIR(status.st_mode), path, ": is a folder, expected a file of safetensors");
    require(S_ISREG(status.st_mode), path,
            ": is no regular file, and is read in parts; copy it to a disk");
    file_size_ = status.st_size;
    read_text();
  }

  const std::string& text() const { return text_; }
  int64_t data() const { return 8 + static_cast<int64_t>(text_.size()); }  // where it begins
  int64_t data_bytes() const { return file_size_ - data(); }

 private:
  std::string bytes(int64_t at, int64_t n) const {
    std::string text(static_cast<size_t>(n), '\0');
    read_bytes(file_, path_, at, text.data(), n);
    return text;
  }

  // Throws Error that says what the file is instead, or else of the parts.
  template <class... Parts>
  void check(bool holds, const Parts&... parts) const {
    if (holds) return;
    const std::string kind = foreign_kind(bytes(0, std::min<int64_t>(file_size_, 64)));
    if (!kind.empty()) fail(path_, ": ", kind);
    fail(path_, ": ", parts...);
  }

  void read_text() {
    check(file_size_ >= 8, "is cut short: it has ", file_size_,
          " bytes, expected 8 for the size of its header");
    const std::string begin = bytes(0, 8);
    uint64_t size = 0;
    for (size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(begin[i]);
    check(size <= kMostHeader, "is no safetensors: its header would have ", size,
          " bytes, expected at most ", kMostHeader);
    check(size >= 2, "has a header of ", size, " bytes, expected at least the 2 of {}");
    check(static_cast<int64_t>(size) <= file_size_ - 8, "is cut short: its header has ", size,
          " bytes, and only ", file_size_ - 8, " follow");
    text_ = bytes(8, static_cast<int64_t>(size));
    check(text_.front() == '{', "is no safetensors: its header does not begin with {");
  }

  const std::string& path_;
  const Descriptor& file_;
  int64_t file_size_ = 0;
  std::string text_;
};

int64_t count_of(const json& value, const std::string& what) {
  require(value.is_number_unsigned() &&
              value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
          what, " is ", value.is_structured() ? "no number" : value.dump(),
          ", expected a whole number from 0 on");
  return value.get<int64_t>();
}

Shape shape_of(const json& value, const std::string& where) {
  require(value.is_array(), where, "its shape is no list of sizes");
  require(value.size() <= size_t{Shape::kMax}, where, "it has ", value.size(),
          " dimensions, expected at most ", Shape::kMax);
  Shape shape;
  for (const json& size : value) shape.append(count_of(size, where + "a size of its shape"));
  return shape;
}

int64_t bytes_of(const Shape& shape, const Type& type, const std::string& where) {
  try {
    const int64_t bits = times(bytes_of(shape, Dtype::u8), type.bits, "bits of a tensor");
    require(bits % 8 == 0, where, "its ", type.name, " fill no whole number of bytes");
    return bits / 8;
  } catch (const TooMany& e) {
    fail(where, "its shape is ", shape, ": ", e.what());
  }
}

// Places are counted from the begin of the data here.
SafeTensor tensor_of(const std::string& name, const json& value, const std::string& where) {
  require(value.is_object(), where, "is no object of dtype, shape and data_offsets");
  for (const char* key : {"dtype", "shape", "data_offsets"})
    require(value.contains(key), where, "has no ", key);
  for (const auto& [key, ignored] : value.items())
    require(key == "dtype" || key == "shape" || key == "data_offsets", where,
            "has the unknown field ", quoted(key), ", expected dtype, shape and data_offsets");
  SafeTensor t;
  t.name = name;
  require(value["dtype"].is_string(), where, "its dtype is no text");
  t.dtype = value["dtype"].get<std::string>();
  const Type* type = type_of(t.dtype);
  require(type != nullptr, where, "has the unknown dtype ", quoted(t.dtype),
          "; known: ", known_types());
  t.shape = shape_of(value["shape"], where);
  const json& offsets = value["data_offsets"];
  require(offsets.is_array() && offsets.size() == 2, where,
          "its data_offsets are no list of begin and end");
  t.begin = count_of(offsets[0], where + "the begin in its data_offsets");
  const int64_t end = count_of(offsets[1], where + "the end in its data_offsets");
  require(t.begin <= end, where, "ends at ", end, ", before its begin at ", t.begin);
  t.bytes = end - t.begin;
  const int64_t expected = bytes_of(t.shape, *type, where);
  require(t.bytes == expected, where, "has ", t.bytes, " bytes, expected ", expected, " for ",
          t.dtype, " of shape ", t.shape);
  return t;
}

void add_metadata(const json& value, const std::string& path,
                  std::map<std::string, std::string>& metadata) {
  require(value.is_object(), path, ": ", kMetadata, " is no object of texts");
  for (const auto& [key, text] : value.items()) {
    require(text.is_string(), path, ": ", kMetadata, " holds ", quoted(key), ", which is no text");
    metadata.emplace(key, text.get<std::string>());
  }
}

// The tensors fill the data from its begin to its end, one right behind the other.
void require_filled(std::vector<SafeTensor>& tensors, const std::string& path, int64_t bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const SafeTensor& a, const SafeTensor& b) {
    return std::tuple(a.begin, a.bytes, a.name) < std::tuple(b.begin, b.bytes, b.name);
  });
  int64_t end = 0;
  for (const SafeTensor& t : tensors) {
    const std::string where = concat(path, ": tensor ", quoted(t.name), ": ");
    require(t.begin + t.bytes <= bytes, where, "ends at byte ", t.begin + t.bytes,
            " of the data, which has ", bytes, ": the file is cut short");
    require(t.begin >= end, where, "begins at byte ", t.begin,
            " of the data, inside of the tensor before it, which ends at ", end);
    require(t.begin == end, where, "begins at byte ", t.begin, " of the data, and bytes ", end,
            " to ", t.begin, " belong to no tensor");
    end = t.begin + t.bytes;
  }
  require(end == bytes, path, ": has ", bytes - end, " bytes behind its last tensor");
}

// --- Values --------------------------------------------------------------------------------------

// IEEE half precision.
struct Half {
  uint16_t bits = 0;
  explicit operator double() const {
    const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31)
      return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                           : sign * std::numeric_limits<double>::infinity();
    const int whole = exponent == 0 ? mantissa : mantissa + 1024;
    return sign * std::ldexp(whole, std::max(exponent, 1) - 25);
  }
};

// Calls f.template operator()<T>() with the C++ type of a dtype of the format.
template <class F>
void for_type(const std::string& name, F&& f) {
  if (name == "F64") return f.template operator()<double>();
  if (name == "F32") return f.template operator()<float>();
  if (name == "F16") return f.template operator()<Half>();
  if (name == "BF16") return f.template operator()<bf16>();
  if (name == "I64") return f.template operator()<int64_t>();
  if (name == "U64") return f.template operator()<uint64_t>();
  if (name == "I32") return f.template operator()<int32_t>();
  if (name == "U32") return f.template operator()<uint32_t>();
  if (name == "I16") return f.template operator()<int16_t>();
  if (name == "U16") return f.template operator()<uint16_t>();
  if (name == "I8") return f.template operator()<int8_t>();
  return f.template operator()<uint8_t>();
}

template <class To, class From>
To converted(From value, const std::string& where) {
  if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    require(std::in_range<To>(value), where, ": holds ", +value, ", which ", dtype_of<To>(),
            " cannot hold");
    return static_cast<To>(value);
  } else if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(value);
  } else {
    return To(static_cast<float>(static_cast<double>(value)));
  }
}

// In pieces, so that no second copy of a tensor is made.
template <class To, class From>
void read_converted(const Descriptor& file, const std::string& where, int64_t at,
                    const Tensor& out) {
  constexpr int64_t kPiece = 1 << 16;  // elements
  std::vector<From> piece(static_cast<size_t>(std::min(kPiece, out.numel())));
  To* const to = out.data<To>();
  for (int64_t done = 0; done < out.numel();) {
    const int64_t n = std::min(kPiece, out.numel() - done);
    const int64_t bytes = n * static_cast<int64_t>(sizeof(From));
    read_bytes(file, where, at, reinterpret_cast<char*>(piece.data()), bytes);
    for (int64_t i = 0; i < n; ++i)
      to[done + i] = converted<To>(piece[static_cast<size_t>(i)], where);
    done += n, at += bytes;
  }
}

// --- Folders -------------------------------------------------------------------------------------

// The file of a model in a folder: its one file, or its index.
std::string file_in(const std::string& folder) {
  std::error_code ignored;
  for (const char* name : {kFile, kIndex})
    if (const fs::path file = fs::path(folder) / name; fs::exists(file, ignored))
      return file.string();
  const char* const pickled = "pytorch_model.bin";
  const bool pickle = fs::exists(fs::path(folder) / pickled, ignored) ||
                      fs::exists(fs::path(folder) / concat(pickled, ".index.json"), ignored);
  fail(folder, ": holds neither ", kFile, " nor ", kIndex,
       pickle ? concat(", but ", pickled, ", which ", foreign_kind("PK\x03\x04").substr(3)) : "");
}

// The shards of an index with the names of their tensors.
std::map<std::string, std::set<std::string>> shards_of(const std::string& index) {
  std::error_code ignored;
  require(!fs::exists(index, ignored) || fs::is_regular_file(index, ignored), index,
          ": is no regular file, expected an index in JSON");
  const json all = parse_json(read_file(index), index);
  require(all.is_object() && all.contains("weight_map") && all["weight_map"].is_object(), index,
          ": has no object weight_map, which says where each tensor lies");
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, shard] : all["weight_map"].items()) {
    const std::string where = concat(index, ": tensor ", quoted(name), ": ");
    require(shard.is_string(), where, "its shard is no text");
    const std::string file = shard.get<std::string>();
    require(!file.empty() && file != "." && file != ".." &&
                file.find_first_of(std::string("/\\\0", 3)) == std::string::npos,
            where, "its shard is ", quoted(file),
            ", expected the bare name of a file beside the index");
    shards[file].insert(name);
  }
  require(!shards.empty(), index, ": its weight_map names no tensor");
  return shards;
}

}  // namespace

Dtype SafeTensor::nearest() const {
  const Type* type = type_of(dtype);
  require(type && type->kind != Kind::neither, "tensor ", quoted(name), " is ", dtype,
          ", which no dtype of ours holds");
  return type->nearest;
}

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
  std::error_code ignored;
  const std::string file = fs::is_directory(path, ignored) ? file_in(path) : path;
  if (file.ends_with(".safetensors.index.json"))
    open_index(file);
  else
    open(file);
}

void SafetensorsReader::open(const std::string& path) {
  Descriptor file(path, O_RDONLY | O_NONBLOCK);  // a FIFO must not wait for a writer
  require_call(file.code(), path, ": cannot be read");
  const Header header(path, file);
  const json all = parse_json(header.text(), path + ": the header");
  std::vector<SafeTensor> tensors;
  for (const auto& [name, value] : all.items())
    if (name == kMetadata)
      add_metadata(value, path, metadata_);
    else
      tensors.push_back(tensor_of(name, value, concat(path, ": tensor ", quoted(name), ": ")));
  require_filled(tensors, path, header.data_bytes());
  for (SafeTensor& t : tensors) {
    t.begin += header.data(), t.file = files_.size();
    places_.emplace(t.name, entries_.size());
    entries_.push_back(std::move(t));
  }
  files_.push_back(path);
  open_.push_back(std::move(file));
}

void SafetensorsReader::open_index(const std::string& index) {
  for (const auto& [shard, names] : shards_of(index)) {
    const std::string path = (fs::path(index).parent_path() / shard).string();
    std::error_code ignored;
    require(fs::exists(path, ignored), path, ": is missing; ", index, " names it for ",
            names.size(), " tensors");
    const size_t before = entries_.size();
    open(path);
    for (size_t i = before; i < entries_.size(); ++i)
      require(names.count(entries_[i].name) > 0, path, ": holds tensor ", quoted(entries_[i].name),
              ", which ", index, " does not place there");
    for (const std::string& name : names) {
      const auto found = places_.find(name);
      require(found != places_.end() && found->second >= before, path, ": lacks tensor ",
              quoted(name), ", which ", index, " places there");
    }
  }
}

const SafeTensor& SafetensorsReader::entry(const std::string& name) const {
  const auto found = places_.find(name);
  if (found != places_.end()) return entries_[found->second];
  std::vector<std::string> names;
  for (const SafeTensor& t : entries_) names.push_back(t.name);
  const std::string near = nearest_name(name, names);
  fail(path_, ": holds no tensor ", quoted(name),
       near.empty() ? "" : concat("; the nearest name is ", quoted(near)));
}

std::string SafetensorsReader::place(const std::string& name) const {
  return concat(files_[entry(name).file], ": tensor ", quoted(name));
}

Tensor SafetensorsReader::read(const std::string& name, Dtype as) const {
  const SafeTensor& t = entry(name);
  const std::string where = place(name);
  const Kind kind = type_of(t.dtype)->kind;
  require(kind != Kind::neither, where, ": is ", t.dtype, ", which no dtype of ours holds");
  require((kind == Kind::real) == is_float(as), where, ": is ", t.dtype, ", expected ",
          is_float(as) ? "floating-point numbers" : "whole numbers", " to be read as ", as);
  const Tensor out = empty(t.shape, as);
  const Descriptor& file = open_[t.file];
  for_type(t.dtype, [&]<class From>() {
    for_dtype(as, [&]<class To>() {
      if constexpr (std::is_same_v<To, From>)
        read_bytes(file, where, t.begin, reinterpret_cast<char*>(out.raw()), t.bytes);
      else if constexpr (std::is_integral_v<To> == std::is_integral_v<From>)
        read_converted<To, From>(file, where, t.begin, out);
    });
  });
  return out;
}

}  // namespace weft
