// Locks of the kernel on open files. One goes with its process, however that ends, so nothing has
// to guess from a process number who still lives: numbers come again, and in containers every
// process is the first. All containers of a machine see it, and other hosts where the file system
// passes it on.
#pragma once

#include <string>

namespace weft {

enum class Lock { ours, held, unsupported };

// Asks for the one lock of a file that is open for writing, and does not wait. It belongs to the
// descriptor: a second one of the same process is refused, and closing gives it back.
Lock lock_file(int descriptor);

// Is the open file still the one of this name? A lock on a file that lost its name guards nothing.
bool has_name(int descriptor, const std::string& path);

// What no two machines, and no machine after a restart, share; all its containers do.
std::string machine_id();
std::string host_name();

}  // namespace weft
