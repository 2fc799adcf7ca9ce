// What the writer and the reader of HDF5 files share: HDF5's handles and errors, the types of our
// tensors and attributes. Only the core/hdf5_*.cpp include this.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/hdf5.h"

namespace weft::h5 {

inline constexpr int64_t kChunkBytes = int64_t{1} << 20;
inline constexpr const char* kChecksum = "checksum";  // of a tensor: XXH64 of its bytes

// One call at a time (not every build of HDF5 has a lock of its own), and none that prints: HDF5's
// error stack, which is one a thread, is read by reason() instead.
class Guard {
 public:
  Guard() {
    if (depth()++ == 0) mutex().lock();
    // Our files are closed by their owners. HDF5's own clean-up at exit has nothing to add, and
    // after a damaged file it prints lines of its own.
    [[maybe_unused]] static const herr_t once = H5dont_atexit();
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Guard() {
    H5Eset_auto2(H5E_DEFAULT, print_, data_);
    if (--depth() == 0) mutex().unlock();
  }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex all;
    return all;
  }
  // Guards that this thread holds. A recursive mutex would do, but for a child process, which
  // starts with what its parent holds: there a recursive mutex takes its owner for another thread.
  static int& depth() {
    thread_local int guards = 0;
    return guards;
  }
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

class Id {
 public:
  Id() = default;
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_), std::swap(close_, other.close_);
    return *this;
  }
  ~Id() { close(); }
  bool close() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }
  operator hid_t() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

// The innermost cause of this thread's last failure: the system's own words where the system
// failed.
std::string reason();

Id file_type(Dtype dtype);
// The dtype that holds every value of a type in a file. False for what is no tensor.
bool dtype_of_type(hid_t type, Dtype& dtype);
// What a type holds, for messages: "text", "records of several fields", "numbers of 16 bytes each".
std::string description_of_type(hid_t type);
// How a dataset is stored: chunks of about 1 MiB, each with its fletcher32.
Id dataset_settings(const Shape& shape, Dtype dtype);
std::vector<hsize_t> dims_of(const Shape& shape);

// Replaces an attribute of the same key. Returns why HDF5 refused, "" where it did not: the next
// call of HDF5, as the one that closes the attribute, forgets the reason.
std::string put_attribute(hid_t object, const std::string& key, const Attribute& value);
// False if the attribute cannot be read, or is of a type that Attribute has no place for.
bool get_attribute(hid_t object, const std::string& key, Attribute& value);
// True if the attribute is sound, but neither text nor numbers: of records, or of nothing.
bool is_foreign_attribute(hid_t object, const std::string& key);

// The names of a group's links and of an object's attributes, sorted. HDF5 lists them as they lie:
// its own sorting frees what it never filled where a damaged list ends early. False if it cannot be
// read.
bool link_names(hid_t group, std::vector<std::string>& names);
bool names_of_attributes(hid_t object, std::vector<std::string>& names);

// The same bytes for the same object of the same file, by whatever path it was opened. "" if HDF5
// cannot say.
std::string identity(hid_t object);

}  // namespace weft::h5
