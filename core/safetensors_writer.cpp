// Writing safetensors: a file, or the shards of a folder.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "core/sizes.h"
#include "core/text.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

const char* name_in_format(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return "F64";
    case Dtype::f32:
      return "F32";
    case Dtype::bf16:
      return "BF16";
    case Dtype::i64:
      return "I64";
    case Dtype::i32:
      return "I32";
    case Dtype::u8:
      return "U8";
  }
  return "";
}

void require_text(const std::string& path, const std::string& what, const std::string& text) {
  require(first_not_utf8(text) == std::string::npos, path, ": ", what, " \"", as_utf8(text),
          "\" is not UTF-8");
}

}  // namespace

// --- One file ------------------------------------------------------------------------------------

struct SafetensorsWriter::State {
  struct Place {
    TensorInfo info;
    int64_t begin = 0, bytes = 0;  // in the file
    bool written = false;
    uint64_t hash = 0;
  };

  explicit State(const std::string& path) : pending(path), file(pending.temporary(), O_WRONLY) {
    require_call(file.code(), path, ": cannot be written");
  }

  PendingFile pending;
  Descriptor file;
  std::map<std::string, Place> places;

  void announce(const std::vector<TensorInfo>& tensors) {
    for (const TensorInfo& info : tensors) {
      require_text(pending.path(), "the tensor's name", info.name);
      require(info.name != "__metadata__", pending.path(), ": no tensor may be called ", info.name);
      const bool fresh =
          places.emplace(info.name, Place{info, 0, bytes_of(info.shape, info.dtype)}).second;
      require(fresh, pending.path(), ": tensor ", json_line(info.name), " is announced twice");
    }
  }

  // The tensors as they lie in the file: larger elements first, else as announced.
  std::vector<Place*> in_order(const std::vector<TensorInfo>& tensors) {
    std::vector<Place*> order;
    for (const TensorInfo& info : tensors) order.push_back(&places.at(info.name));
    std::stable_sort(order.begin(), order.end(), [](const Place* a, const Place* b) {
      return size_of(a->info.dtype) > size_of(b->info.dtype);
    });
    return order;
  }

  void write(int64_t at, const void* data, int64_t n, const std::string& what) const {
    const auto* from = static_cast<const char*>(data);
    while (n > 0) {
      const ssize_t done = ::pwrite(file.get(), from, static_cast<size_t>(n), at);
      const int code = done == 0 ? ENOSPC : code_of(done);
      if (code == EINTR) continue;
      require_call(code, pending.path(), ": ", what, " cannot be written");
      from += done, at += done, n -= done;
    }
  }

  // What later readers will read is what was given.
  void read_back() const {
    const SafetensorsReader reader(pending.temporary());
    for (const auto& [name, place] : places) {
      const Tensor t = reader.read(name, place.info.dtype);
      require(t.shape() == place.info.shape &&
                  hash64(t.raw(), static_cast<size_t>(place.bytes)) == place.hash,
              pending.path(), ": tensor ", json_line(name),
              " was written and does not read back; the disk or the memory is at fault");
    }
  }
};

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     const std::vector<TensorInfo>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : state_(std::make_unique<State>(path)) {
  State& s = *state_;
  s.announce(tensors);
  ordered_json header = ordered_json::object();
  for (const auto& [key, value] : metadata) {
    require_text(path, "the metadata", key);
    require_text(path, "the metadata", value);
    header["__metadata__"][key] = value;
  }
  int64_t end = 0;
  const std::vector<State::Place*> order = s.in_order(tensors);
  for (State::Place* place : order) {
    place->begin = end;
    end = plus(end, place->bytes, "bytes of the tensors of a file");
    ordered_json shape = ordered_json::array();
    for (const int64_t size : place->info.shape) shape.push_back(size);
    header[place->info.name] = {{"dtype", name_in_format(place->info.dtype)},
                                {"shape", shape},
                                {"data_offsets", {place->begin, end}}};
  }
  std::string text = json_line(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin at a multiple of 8
  std::string size;
  for (size_t i = 0; i < 8; ++i) size += static_cast<char>(text.size() >> 8 * i & 255);
  text = size + text;
  for (State::Place* place : order) place->begin += static_cast<int64_t>(text.size());
  s.write(0, text.data(), static_cast<int64_t>(text.size()), "the header");
}

SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;

void SafetensorsWriter::tensor(const std::string& name, const Tensor& value) {
  State& s = *state_;
  const std::string what = "tensor " + json_line(name), where = s.pending.path() + ": " + what;
  const auto found = s.places.find(name);
  require(found != s.places.end(), where, " was not announced");
  State::Place& place = found->second;
  require(!place.written, where, " is written twice");
  require(value.defined() && value.device().is_cpu(), where, " is not on the CPU");
  require(value.dtype() == place.info.dtype && value.shape() == place.info.shape, where, " is ",
          value.dtype(), " of shape ", value.shape(), ", announced as ", place.info.dtype,
          " of shape ", place.info.shape);
  const Tensor whole = value.contiguous();
  s.write(place.begin, whole.raw(), place.bytes, what);
  place.hash = hash64(whole.raw(), static_cast<size_t>(place.bytes));
  place.written = true;
}

void SafetensorsWriter::commit() {
  State& s = *state_;
  for (const auto& [name, place] : s.places)
    require(place.written, s.pending.path(), ": tensor ", json_line(name),
            " was announced and not written");
  require_call(s.file.close(), s.pending.path(), ": cannot be written");
  s.read_back();
  s.pending.commit();
}

// --- A folder ------------------------------------------------------------------------------------

namespace {

// Which tensors each shard holds: as many as fit, in the order in which they were announced.
std::vector<std::vector<TensorInfo>> shards_of(const std::vector<TensorInfo>& tensors,
                                               int64_t shard_bytes) {
  std::vector<std::vector<TensorInfo>> shards(1);
  int64_t taken = 0;
  for (const TensorInfo& info : tensors) {
    const int64_t bytes = bytes_of(info.shape, info.dtype);
    if (!shards.back().empty() && at_most_plus(taken, bytes) > shard_bytes)
      shards.emplace_back(), taken = 0;
    shards.back().push_back(info);
    taken = at_most_plus(taken, bytes);
  }
  return shards;
}

std::string shard_name(size_t i, size_t n) {
  if (n == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, n);
  return name;
}

// Is it the name of a file that belongs to a model?
bool is_of_model(const std::string& name) {
  return name.starts_with("model.safetensors") ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

void require_no_model(const std::string& folder) {
  std::error_code failed;
  if (!fs::exists(folder, failed)) return;
  for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
    const std::string name = at->path().filename().string();
    require(!is_of_model(name), folder, ": holds ", as_utf8(name),
            " already, of this model or of another; name a new folder, or remove it");
  }
  require(!failed, folder, ": cannot be listed: ", failed.message());
}

}  // namespace

SafetensorsFolderWriter::Folder::Folder(const std::string& name) : path(name) {
  std::error_code ignored;
  made = !fs::exists(name, ignored);
  make_folders(name);
}

SafetensorsFolderWriter::Folder::~Folder() {
  if (made) ::rmdir(path.c_str());  // refused where it holds anything
}

SafetensorsFolderWriter::SafetensorsFolderWriter(const std::string& folder,
                                                 const std::vector<TensorInfo>& tensors,
                                                 const std::map<std::string, std::string>& metadata,
                                                 int64_t shard_bytes) {
  require_no_model(folder);
  folder_ = std::make_unique<Folder>(folder);
  const auto parts = shards_of(tensors, shard_bytes);
  ordered_json map = ordered_json::object();
  int64_t total = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = shard_name(i, parts.size());
    const std::string path = (fs::path(folder) / name).string();
    shards_.push_back({path, SafetensorsWriter(path, parts[i], metadata)});
    for (const TensorInfo& info : parts[i]) {
      require(shard_of_.emplace(info.name, i).second, folder, ": tensor ", json_line(info.name),
              " is announced twice");
      map[info.name] = name;
      total = plus(total, bytes_of(info.shape, info.dtype), "bytes of the tensors of a model");
    }
  }
  if (parts.size() > 1)
    index_ = json_line({{"metadata", {{"total_size", total}}}, {"weight_map", map}}) + "\n";
}

void SafetensorsFolderWriter::tensor(const std::string& name, const Tensor& value) {
  const auto found = shard_of_.find(name);
  require(found != shard_of_.end(), folder_->path, ": tensor ", json_line(name),
          " was not announced");
  shards_[found->second].writer.tensor(name, value);
}

void SafetensorsFolderWriter::commit() {
  size_t placed = 0;
  try {
    for (Shard& shard : shards_) shard.writer.commit(), ++placed;
    if (!index_.empty())
      write_file((fs::path(folder_->path) / "model.safetensors.index.json").string(), index_);
  } catch (...) {
    for (size_t i = 0; i < placed; ++i) ::unlink(shards_[i].path.c_str());
    throw;
  }
}

}  // namespace weft
