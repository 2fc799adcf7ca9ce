// Files as wholes: read in one go, and written whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace weft {

// The bytes of a file. Throws Error that says why it cannot be read.
std::string read_file(const std::string& path);

// A file that is being written beside its final place, as PATH.tmp-PID. commit() flushes it to the
// disk and renames it; a PendingFile that ends without commit() leaves nothing, and what stood at
// PATH stays as it was.
class PendingFile {
 public:
  // Throws Error if the folder is missing, cannot be written, or PATH is a folder itself.
  explicit PendingFile(const std::string& path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  const std::string& path() const { return path_; }
  const std::string& temporary() const { return temporary_; }
  void commit();

 private:
  std::string path_, temporary_;
  bool committed_ = false;
};

// Writes a small file whole or not at all.
void write_file(const std::string& path, std::string_view bytes);

// Removes files named *.tmp-PID in a folder whose process is gone: a run killed while it saved
// leaves one. Returns how many.
int remove_abandoned_files(const std::string& folder);

}  // namespace weft
