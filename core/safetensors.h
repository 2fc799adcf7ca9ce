// Files of the format safetensors, as Hugging Face's libraries read and write them: eight bytes for
// the size of a header, the header in JSON (name, dtype, shape and place of each tensor), and the
// tensors' bytes. A model is one file, or a folder that holds model.safetensors, or shards and
// model.safetensors.index.json, which says which shard holds which tensor.
//
// The reader takes nothing on trust: the tensors of a file must fill its data without a hole, an
// overlap or a byte too much, and an index and its shards must name the same tensors. But the
// format has no checksum. A bit that was changed in the data of a file cannot be seen by any
// reader; who reads parameters counts those that are not finite, and that is all that can be done.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/hdf5.h"
#include "core/system.h"
#include "core/tensor.h"

namespace weft {

struct SafeTensor {
  std::string name;
  std::string dtype;  // as the format names it: F32, BF16, F16, I64, F8_E4M3
  Shape shape;
  int64_t bytes = 0;
  int64_t begin = 0;  // in its file
  size_t file = 0;    // in SafetensorsReader::files()

  // The dtype of ours that holds every value of it: F16 is read as f32. Throws Error if there is
  // none.
  Dtype nearest() const;
};

class SafetensorsReader {
 public:
  // A file, an index (NAME.safetensors.index.json), or a folder. Reads the headers alone. Throws
  // Error that names the file for whatever is missing, foreign, cut short or wrong in it.
  explicit SafetensorsReader(const std::string& path);

  const std::string& path() const { return path_; }
  // The file, or the shards by name.
  const std::vector<std::string>& files() const { return files_; }
  // All tensors, in the order in which they lie in the files.
  const std::vector<SafeTensor>& entries() const { return entries_; }
  // Texts that the writer put beside the tensors, as "format": of all shards together.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  bool has(const std::string& name) const { return places_.count(name) > 0; }
  // Throws Error, with the nearest name, if there is none.
  const SafeTensor& entry(const std::string& name) const;
  // `FILE: tensor "NAME"`, for messages.
  std::string place(const std::string& name) const;

  // A tensor on the CPU. Floating-point types (F64 F32 F16 BF16) are read as f64, f32 or bf16, each
  // value rounded to the nearest; whole numbers and truth values (I64 I32 I16 I8 U64 U32 U16 U8
  // BOOL) as i64, i32 or u8. Throws Error for other types, where `as` is of the other kind, and for
  // a whole number that does not fit. May be called from any thread.
  Tensor read(const std::string& name, Dtype as) const;
  Tensor read(const std::string& name) const { return read(name, entry(name).nearest()); }

 private:
  void open(const std::string& file);
  void open_index(const std::string& index);

  std::string path_;
  std::vector<std::string> files_;
  std::vector<Descriptor> open_;
  std::vector<SafeTensor> entries_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, size_t> places_;  // in entries_
};

// Writes one file, whole or not at all. The header comes first, so all tensors are announced before
// the first one is written; none is held in memory. Larger dtypes lie before smaller ones, so that
// every tensor lies where its dtype may be mapped into memory.
class SafetensorsWriter {
 public:
  // Throws Error if a file cannot be made there, or if a name is announced twice.
  SafetensorsWriter(const std::string& path, const std::vector<TensorInfo>& tensors,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();  // without commit(), nothing is left behind
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;

  // A CPU tensor of the announced shape and dtype, each once, in any order.
  void tensor(const std::string& name, const Tensor& value);
  // Reads back, compares with what was given, flushes, renames. Throws Error, with an older file
  // untouched, if a tensor is missing or any of it fails.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same for a folder, which is made: model.safetensors, or where the tensors take more than
// `shard_bytes`, model-00001-of-0000N.safetensors ... and model.safetensors.index.json. A tensor is
// never cut; one that is larger than a shard is alone in it.
class SafetensorsFolderWriter {
 public:
  static constexpr int64_t kShardBytes = 5'000'000'000;

  // Throws Error if the folder holds files of a model already: a reader could take the old for the
  // new, and no file that another wrote is removed.
  SafetensorsFolderWriter(const std::string& folder, const std::vector<TensorInfo>& tensors,
                          const std::map<std::string, std::string>& metadata = {},
                          int64_t shard_bytes = kShardBytes);

  void tensor(const std::string& name, const Tensor& value);
  // Puts the shards in place, then the index, without which they are no model. Where one cannot be
  // put in place, those before it are removed.
  void commit();

 private:
  // A folder that this writer made goes away again, unless files were put in it.
  struct Folder {
    explicit Folder(const std::string& path);
    ~Folder();
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string path;
    bool made = false;
  };
  struct Shard {
    std::string path;
    SafetensorsWriter writer;
  };
  std::unique_ptr<Folder> folder_;
  std::string index_;  // its text; empty for a single file
  std::vector<Shard> shards_;
  std::map<std::string, size_t> shard_of_;
};

}  // namespace weft
