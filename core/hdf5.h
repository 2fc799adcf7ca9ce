// HDF5 files of named tensors and attributes: checkpoints, token datasets, operation files. What
// the writer makes is checked and whole or not there at all: it writes beside the final name, puts
// a seal on the file (core/seal.h), reads everything back and compares it with what was meant,
// flushes to the disk, then renames. The seal covers every byte, names and attributes too; the
// root's attribute "sealed" says that there must be one. Every tensor also carries a checksum of
// its bytes (XXH64, attribute "checksum"), so that damage has a name. bf16 is stored as a 16-bit
// float type that h5dump and h5py understand.
// The reader takes files of other programs, and of earlier versions, too. A file is read whole
// before it is trusted: by its seal, with plain reads, or where it has none by HDF5 in a child
// process, which may crash. All calls may come from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "core/tensor.h"

namespace weft {

// Of the root of a file that ends in a seal (core/seal.h): without its seal the file is not whole.
inline constexpr const char* kSealed = "sealed";

using Attribute = std::variant<int64_t, double, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

struct TensorInfo {
  std::string name;  // "layers/3/wq"
  Shape shape;
  Dtype dtype = Dtype::f32;
};

// What a link of a file leads to.
struct Hdf5Entry {
  enum class Kind { tensor, group, unreadable };
  std::string name;  // in full, "inputs/q"
  Kind kind = Kind::unreadable;
  std::string what;  // "a group", "text", "numbers of 16 bytes each", "a link to nothing"
};

class Hdf5Writer {
 public:
  // Throws Error if a file cannot be made there.
  explicit Hdf5Writer(const std::string& path);
  ~Hdf5Writer();  // without commit(), nothing is left behind and an older file stays as it was
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  // A CPU tensor; groups in the name ("optimizer/m/wq") are made. Throws Error on a name used
  // before.
  void tensor(const std::string& name, const Tensor& value);
  // The same from memory that is no tensor.
  void tensor(const std::string& name, Dtype dtype, const Shape& shape, const void* data);
  // On the root (""), a group, which is made, or a tensor. Replaces one of the same key.
  void attribute(const std::string& object, const std::string& key, const Attribute& value);

  // A tensor of unknown length along its first dimension, handed over piece by piece.
  void begin_rows(const std::string& name, Dtype dtype, const Shape& row);
  void append_rows(const std::string& name, const void* data, int64_t rows);

  // Closes, seals, reads back and compares every name, tensor and attribute, flushes, renames.
  // Throws Error, with the older file untouched, if any of it fails; a full disk is told as such.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Hdf5Reader {
 public:
  // `kind` names in messages what the file should be: "checkpoint", "token dataset".
  // Throws Error for a missing, foreign, truncated or damaged file.
  explicit Hdf5Reader(const std::string& path, const std::string& kind = "file");
  ~Hdf5Reader();
  Hdf5Reader(Hdf5Reader&&) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&&) noexcept;

  const std::string& path() const;

  // Every tensor under a group ("" is the root), sorted by full name; nothing is read. Datasets of
  // types that are no tensor (strings, records) are left out. A group that is linked more than once
  // is listed once.
  std::vector<TensorInfo> tensors(const std::string& group = "") const;
  // The groups right under a group, by full name.
  std::vector<std::string> groups(const std::string& group = "") const;
  // Every link right under a group, sorted: what tensors() leaves out is here too, and what it is.
  // For callers that must not take the unreadable for absent.
  std::vector<Hdf5Entry> entries(const std::string& group = "") const;
  // False only where HDF5 says that there is no such link: damage throws Error that names it.
  bool has_tensor(const std::string& name) const;
  bool has_group(const std::string& name) const;
  TensorInfo info(const std::string& name) const;

  // Throws Error that names file and tensor if it is absent or damaged. Types that are not ours are
  // widened: f16 to f32, i8 u16 i16 to i32, u32 u64 to i64, HDF5's booleans to u8.
  Tensor tensor(const std::string& name) const;
  // Rows [begin, end) along the first dimension. Only fletcher32 guards what is read in part.
  Tensor rows(const std::string& name, int64_t begin, int64_t end) const;
  // The same into memory of (end - begin) * row bytes, without a tensor: for background threads.
  void read_rows(const std::string& name, int64_t begin, int64_t end, void* to) const;
  // Reads every tensor in pieces and compares checksums, in 1 MiB of memory.
  void verify() const;
  void verify(const std::string& name) const;
  // The XXH64 of a tensor's bytes, in 1 MiB of memory.
  uint64_t hash(const std::string& name) const;

  // False only where HDF5 says that there is none, as has_tensor().
  bool has_attribute(const std::string& object, const std::string& key) const;
  // Those of types that Attribute has a place for; attribute_names() has them all. Throws Error if
  // one is damaged.
  std::map<std::string, Attribute> attributes(const std::string& object) const;
  std::vector<std::string> attribute_names(const std::string& object) const;
  Attribute attribute(const std::string& object, const std::string& key) const;
  // Attributes of one type; an integer reads as a number too. Throw Error if absent or of another.
  std::string text(const std::string& object, const std::string& key) const;
  int64_t integer(const std::string& object, const std::string& key) const;
  double number(const std::string& object, const std::string& key) const;
  std::vector<std::string> texts(const std::string& object, const std::string& key) const;

 private:
  friend class Hdf5Writer;  // which reads in a child process what it wrote
  struct Unchecked {};
  Hdf5Reader(const std::string& path, const std::string& kind, Unchecked);

  struct State;
  std::unique_ptr<State> state_;
};

// The version of the library, "1.14.5".
std::string hdf5_version();

}  // namespace weft
