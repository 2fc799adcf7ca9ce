// Writing HDF5 files. The order of things in commit() is what makes a file whole or not there at
// all.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "core/child.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/hdf5_native.h"
#include "core/hdf5_written.h"
#include "core/seal.h"
#include "core/system.h"
#include "core/text.h"

namespace weft {

using namespace h5;

struct Hdf5Writer::State {
  struct Rows {
    Id dataset;
    Dtype dtype = Dtype::f32;
    Shape row;
    int64_t chunk = 1;        // rows of a chunk
    int64_t count = 0;        // rows in the file
    std::vector<char> begun;  // the last rows, which fill no chunk yet
    Hash64 hash;

    int64_t row_bytes() const { return row.numel() * size_of(dtype); }
    int64_t begun_rows() const { return static_cast<int64_t>(begun.size()) / row_bytes(); }
  };

  explicit State(const std::string& path) : pending(path) {}

  PendingFile pending;
  Id file;
  std::map<std::string, Rows> rows;
  Written written;
  int64_t reserved = 0;
  int descriptor = -1;  // HDF5's own, for reserve() and abandon()

  [[noreturn]] void refuse(const std::string& what, const std::string& why) const {
    fail(pending.path(), ": ", what, " cannot be written: ", why);
  }
  // `done` is a call of HDF5 that was the last one.
  void check(bool done, const std::string& what) const {
    if (!done) refuse(what, reason());
  }
  void check_reason(const std::string& why, const std::string& what) const {
    if (!why.empty()) refuse(what, why);
  }

  // Asks the system for room before HDF5 writes: HDF5 cannot close a file that it failed to write.
  void reserve(int64_t bytes, const std::string& what) {
    const int64_t wanted = reserved + bytes;
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        static_cast<rlim_t>(wanted) > limit.rlim_cur)
      refuse(what, reason_of(EFBIG));
    int code = EINTR;
    while (code == EINTR)
      code = code_of(::fallocate(descriptor, FALLOC_FL_KEEP_SIZE, reserved, bytes));
    // Not every file system can: then a full disk is seen later.
    if (code != 0 && code != EOPNOTSUPP && code != ENOSYS && code != EINVAL && code != EPERM)
      refuse(what, reason_of(code));
    reserved = wanted;
  }

  // Moves the first rows that were handed over to the file. Whole chunks at a time are fast.
  void write_rows(Rows& rows, int64_t n, const std::string& what) {
    Shape piece, whole;
    piece.append(n), whole.append(rows.count + n);
    for (const int64_t size : rows.row) piece.append(size), whole.append(size);
    check(H5Dset_extent(rows.dataset, dims_of(whole).data()) >= 0, what);
    const Id space(H5Dget_space(rows.dataset), H5Sclose);
    std::vector<hsize_t> start(static_cast<size_t>(whole.dims()), 0);
    start[0] = static_cast<hsize_t>(rows.count);
    check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, dims_of(piece).data(),
                              nullptr) >= 0,
          what);
    const Id memory(H5Screate_simple(piece.dims(), dims_of(piece).data(), nullptr), H5Sclose);
    const Id type = file_type(rows.dtype);
    check(H5Dwrite(rows.dataset, type, memory, space, H5P_DEFAULT, rows.begun.data()) >= 0, what);
    rows.count += n;
    rows.begun.erase(rows.begun.begin(), rows.begun.begin() + n * rows.row_bytes());
  }

  // Reads what later readers will read and compares it with what was meant. A write that was lost,
  // or a read that fails here, can crash HDF5: it ends a child process, not the run.
  void read_back() const {
    const std::string& file = pending.temporary();
    struct stat status {};
    const bool seen = ::stat(file.c_str(), &status) == 0;
    const ChildResult child = in_child(
        [&] {
          require(seal_of(file) == Seal::holds, "its seal does not hold");
          written.compare(Hdf5Reader(file, "file", Hdf5Reader::Unchecked{}));
        },
        60 + (seen ? status.st_size : 0) / 10'000'000);
    require(child.ok(), pending.path(), ": what was written does not read back: ", child.message);
  }

  // What HDF5 still wants to write goes to memory, so that it can close the file and forget it.
  void abandon() {
    if (!file.valid()) return;
    const int memory = ::memfd_create("abandoned", MFD_CLOEXEC);
    if (memory >= 0 && descriptor >= 0) ::dup2(memory, descriptor);
    if (memory >= 0) ::close(memory);
    rows.clear();
    file.close();
  }
};

Hdf5Writer::Hdf5Writer(const std::string& path) : state_(std::make_unique<State>(path)) {
  const Guard guard;
  State& s = *state_;
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);  // structures with checksums
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);  // also where one of its tensors does not close
  H5Pset_file_locking(access, false, true);  // the name is ours alone, and not every disk can lock
  const Id create(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(create, false);
  s.file = Id(H5Fcreate(s.pending.temporary().c_str(), H5F_ACC_TRUNC, create, access), H5Fclose);
  s.check(s.file.valid(), "the file");
  void* handle = nullptr;
  if (H5Fget_vfd_handle(s.file, H5P_DEFAULT, &handle) >= 0 && handle)
    s.descriptor = *static_cast<int*>(handle);
  s.reserve(65536, "the file");
}

Hdf5Writer::~Hdf5Writer() {
  const Guard guard;
  if (state_) state_->abandon();
}

void Hdf5Writer::tensor(const std::string& name, const Tensor& value) {
  require(value.defined() && value.device().is_cpu(), "tensor \"", name,
          "\" cannot be written: it is not on the CPU");
  const Tensor whole = value.contiguous();
  tensor(name, whole.dtype(), whole.shape(), whole.raw());
}

namespace {

// Room for the chunks with their sums, and for what HDF5 keeps about them.
int64_t room_for(int64_t bytes) { return bytes + (bytes / kChunkBytes + 1) * 128 + 4096; }

// Makes a group and those above it. HDF5 would make them by itself, but with the time in them, and
// the same tensors must make the same bytes.
// Returns why one cannot be made, or "".
std::string make_groups(hid_t file, const std::string& name) {
  const Id settings(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(settings, false);
  for (size_t end = name.find('/', 1);; end = name.find('/', end + 1)) {
    const std::string group = name.substr(0, end);
    if (!group.empty() && H5Lexists(file, group.c_str(), H5P_DEFAULT) <= 0) {
      Id made(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, settings, H5P_DEFAULT), H5Gclose);
      if (!made.valid() || !made.close()) return reason();
    }
    if (end == std::string::npos) return "";
  }
}

// `why` says why there is none, where there is none.
Id make_dataset(hid_t file, const std::string& name, Dtype dtype, hid_t space, hid_t settings,
                std::string& why) {
  const size_t slash = name.rfind('/');
  if (slash != std::string::npos) why = make_groups(file, name.substr(0, slash));
  if (!why.empty()) return {};
  const Id type = file_type(dtype);
  Id made(H5Dcreate2(file, name.c_str(), type, space, H5P_DEFAULT, settings, H5P_DEFAULT),
          H5Dclose);
  if (!made.valid()) why = reason();
  return made;
}

}  // namespace

void Hdf5Writer::tensor(const std::string& name, Dtype dtype, const Shape& shape,
                        const void* data) {
  const Guard guard;
  State& s = *state_;
  const std::string what = "tensor \"" + name + "\"";
  const int64_t bytes = shape.numel() * size_of(dtype);
  s.reserve(room_for(bytes), what);
  const auto dims = dims_of(shape);
  const Id space(
      dims.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(shape.dims(), dims.data(), nullptr),
      H5Sclose);
  std::string why;
  Id dataset = make_dataset(s.file, name, dtype, space, dataset_settings(shape, dtype), why);
  s.check_reason(why, what);
  if (bytes > 0)
    s.check(H5Dwrite(dataset, file_type(dtype), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0, what);
  const uint64_t hash = hash64(data, static_cast<size_t>(bytes));
  s.check_reason(put_attribute(dataset, kChecksum, to_hex(hash)), what);
  s.check(dataset.close(), what);
  s.written.tensor(name, dtype, shape, hash);
}

namespace {

// What an attribute's texts may hold, so that they read back: its padding is zeros.
bool reads_back(const std::string& text) {
  return first_not_utf8(text) == std::string::npos && text.find('\0') == std::string::npos;
}

bool reads_back(const Attribute& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return reads_back(*text);
  const auto* texts = std::get_if<std::vector<std::string>>(&value);
  return !texts || std::all_of(texts->begin(), texts->end(),
                               [](const std::string& text) { return reads_back(text); });
}

}  // namespace

void Hdf5Writer::attribute(const std::string& object, const std::string& key,
                           const Attribute& value) {
  const Guard guard;
  State& s = *state_;
  const std::string what = "attribute \"" + key + "\"";
  if (!reads_back(value)) s.refuse(what, "it is not UTF-8 text, or holds a zero character");
  s.reserve(65536, what);
  const std::string at = object.empty() ? "/" : object;
  if (at != "/") s.check_reason(make_groups(s.file, at), what);
  Id target(H5Oopen(s.file, at.c_str(), H5P_DEFAULT), H5Oclose);
  s.check(target.valid(), what);
  s.check_reason(put_attribute(target, key, value), what);
  s.check(target.close(), what);
  s.written.attribute(object, key, value);
}

void Hdf5Writer::begin_rows(const std::string& name, Dtype dtype, const Shape& row) {
  const Guard guard;
  State& s = *state_;
  Shape none, chunk;
  none.append(0);
  chunk.append(
      std::max<int64_t>(1, kChunkBytes / size_of(dtype) / std::max<int64_t>(1, row.numel())));
  for (const int64_t size : row) none.append(size), chunk.append(size);
  std::vector<hsize_t> most = dims_of(none);
  most[0] = H5S_UNLIMITED;
  const Id space(H5Screate_simple(none.dims(), dims_of(none).data(), most.data()), H5Sclose);
  State::Rows rows;
  rows.dtype = dtype, rows.row = row, rows.chunk = chunk[0];
  std::string why;
  rows.dataset = make_dataset(s.file, name, dtype, space, dataset_settings(chunk, dtype), why);
  s.check_reason(why, "tensor \"" + name + "\"");
  s.rows.emplace(name, std::move(rows));
}

void Hdf5Writer::append_rows(const std::string& name, const void* data, int64_t count) {
  const Guard guard;
  State& s = *state_;
  const std::string what = "tensor \"" + name + "\"";
  const auto found = s.rows.find(name);
  require(found != s.rows.end(), what, " was not begun");
  State::Rows& rows = found->second;
  const int64_t bytes = count * rows.row_bytes();
  if (bytes == 0) return;
  s.reserve(room_for(bytes), what);
  rows.hash.update(data, static_cast<size_t>(bytes));
  const auto* begin = static_cast<const char*>(data);
  rows.begun.insert(rows.begun.end(), begin, begin + bytes);
  const int64_t whole = rows.begun_rows() / rows.chunk * rows.chunk;
  if (whole > 0) s.write_rows(rows, whole, what);
}

void Hdf5Writer::commit() {
  const Guard guard;
  State& s = *state_;
  for (auto& [name, rows] : s.rows) {
    const std::string what = "tensor \"" + name + "\"";
    if (!rows.begun.empty()) s.write_rows(rows, rows.begun_rows(), what);
    const uint64_t hash = rows.hash.digest();
    s.check_reason(put_attribute(rows.dataset, kChecksum, to_hex(hash)), what);
    s.check(rows.dataset.close(), what);
    Shape shape;
    shape.append(rows.count);
    for (const int64_t size : rows.row) shape.append(size);
    s.written.tensor(name, rows.dtype, shape, hash);
  }
  s.rows.clear();
  attribute("", kSealed, std::string("the last 64 bytes are a checksum of all before them"));
  s.check(H5Fflush(s.file, H5F_SCOPE_GLOBAL) >= 0, "the file");
  s.check(s.file.close(), "the file");
  // What reserve() asked for beyond the end goes back.
  std::error_code error;
  const auto size = std::filesystem::file_size(s.pending.temporary(), error);
  if (!error) std::filesystem::resize_file(s.pending.temporary(), size, error);
  s.check_reason(error ? error.message() : "", "the file");
  put_seal(s.pending.temporary());
  s.read_back();
  s.pending.commit();
}

}  // namespace weft
