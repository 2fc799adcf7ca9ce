// The bytes of a file, a block at a time. What gzip (*.gz) or Zstandard (*.zst) packed comes
// unpacked, by the programs of these names.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace weft::data {

class Blocks {
 public:
  // Throws Error where the file cannot be read.
  explicit Blocks(const std::string& path);
  // "" at the end. Throws Error where a packed file is damaged, or its program is missing.
  std::string_view next();

 private:
  struct Close {
    bool pipe;
    void operator()(std::FILE* file) const;
  };

  std::string path_, program_;  // empty for a file that is read as it is
  std::unique_ptr<std::FILE, Close> file_;
  std::string buffer_;
};

// "books.jsonl" of "books.jsonl.gz"; other names as they are.
std::string without_packing(const std::string& path);

}  // namespace weft::data
