// Files as wholes: read in one go, and written whole or not at all.
//
// A file outlives a loss of power once its writer returns. The writer flushes the bytes, then
// renames the file, then flushes the folder. A new folder is flushed into its parent before a file
// is put in it. An older file is removed only after all of this.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/system.h"
#include "core/temporary.h"

namespace weft {

// The bytes of a file. Throws Error that says why it cannot be read.
std::string read_file(const std::string& path);

// A file that is being written beside its final place (core/temporary.h). commit() flushes it to
// the disk and renames it; a PendingFile that ends without commit() leaves nothing, and what stood
// at PATH stays as it was. Where PATH is a link, the file it leads to is replaced, and the link
// stays. A file keeps its permissions. A FIFO, a character device or an open descriptor
// (/dev/stdout, /dev/fd/3) is never replaced: commit() copies the bytes into it.
class PendingFile {
 public:
  // Throws Error if the folder is missing, cannot be written, or PATH is something else, as a
  // folder, or is being written by another process.
  explicit PendingFile(const std::string& path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  const std::string& path() const { return path_; }
  const std::string& temporary() const { return beside_ ? beside_->name() : elsewhere_; }
  void commit();

 private:
  void copy_through();
  void keep_permissions(const Descriptor& file) const;

  std::string path_, place_;             // as named, and where its links lead
  std::optional<TemporaryFile> beside_;  // what is renamed
  std::string elsewhere_;                // or what is copied into the target
  Descriptor target_, copied_;
};

// Writes a small file whole or not at all.
void write_file(const std::string& path, std::string_view bytes);

// Throws Error if a file cannot be written to `path`, or if it is one of the inputs, by this name
// or another; a folder stands for the texts in it. Long work asks this before it begins.
void require_output(const std::string& path, const std::vector<std::string>& inputs = {});

// Both lead to one thing that is there.
bool same_file(const std::string& a, const std::string& b);

// What is written to `path` comes out of standard output, where nothing else may be printed then.
bool is_standard_output(const std::string& path);

// Makes a folder and those above it, each flushed into its parent. Throws Error.
void make_folders(const std::string& path);

// Flushes a folder's names to the disk. Throws Error, but not where the file system has no such
// call.
void flush_folder(const std::string& folder);

// Makes `to` a second name of the file `from`, or a flushed copy where there are no second names;
// whole or not at all. Throws Error, with `to` untouched, if it cannot.
void share_file(const std::string& from, const std::string& to);

}  // namespace weft
