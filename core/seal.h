// A seal: the last 64 bytes of a file, in plain text, hold the XXH64 of every byte before them and
// how many those are. It is checked with plain reads, before any library looks at the file.
//   weft seal 1 xxh64 0123456789abcdef bytes 0000000000000000012345
// `head -c -64 FILE | xxhsum -H64` gives the same sum. HDF5 ignores what lies behind its own end.
#pragma once

#include <string>

namespace weft {

enum class Seal {
  none,    // the file does not end in one
  holds,   // every byte is as it was when the seal was put on
  broken,  // some byte is not
};

// Reads the file and appends the seal to it. Throws Error if it cannot be read or written.
void put_seal(const std::string& path);

// Reads the whole file, in 1 MiB of memory. Throws Error if it cannot be read.
Seal seal_of(const std::string& path);

}  // namespace weft
