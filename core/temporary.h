// Files under way: PATH.tmp-MACHINE-RANDOM beside PATH, locked while their process lives.
#pragma once

#include <string>

namespace weft {

class TemporaryFile {
 public:
  // Makes it empty, after removing those that killed writers of PATH left. Throws Error if it
  // cannot be made, or if another process is writing PATH.
  explicit TemporaryFile(const std::string& path);
  ~TemporaryFile();  // removes it, unless it was renamed
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& name() const { return name_; }

 private:
  void make(const std::string& path);
  void remove();

  std::string name_;
  int descriptor_ = -1;
};

// The name of a file under way that no other process chooses. Nothing is made.
std::string temporary_name(const std::string& path);

// Removes the files under way of a folder whose process is gone. Of another machine that is known
// only where the file system passes locks on; without `alone` its files must also lie untouched for
// an hour. `alone` says that nobody else writes in the folder (its run is locked). Returns how
// many.
int remove_abandoned_files(const std::string& folder, bool alone = false);

}  // namespace weft
