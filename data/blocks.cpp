#include "data/blocks.h"

#include <sys/wait.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace weft::data {
namespace {

constexpr size_t kBlock = size_t{1} << 20;

// The program that unpacks a file, by its name; empty where nothing does.
std::string program_of(const std::string& path) {
  return path.ends_with(".gz") ? "gzip" : path.ends_with(".zst") ? "zstd" : "";
}

// A word of sh.
std::string quoted(const std::string& text) {
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? "'\\''" : std::string(1, c);
  return word + "'";
}

}  // namespace

void Blocks::Close::operator()(std::FILE* file) const {
  if (pipe)
    ::pclose(file);
  else
    std::fclose(file);
}

Blocks::Blocks(const std::string& path)
    : path_(path),
      program_(program_of(path)),
      file_(std::fopen(path.c_str(), "rbe"), Close{false}),
      buffer_(kBlock, '\0') {
  require(file_ != nullptr, path, ": cannot be read: ", std::strerror(errno));
  if (!program_.empty()) {
    const std::string command = program_ + " -dc < " + quoted(path) + " 2>/dev/null";
    file_ = std::unique_ptr<std::FILE, Close>(::popen(command.c_str(), "re"), Close{true});
    require(file_ != nullptr, path, ": cannot be unpacked: ", std::strerror(errno));
  }
  std::setvbuf(file_.get(), nullptr, _IONBF, 0);
}

std::string_view Blocks::next() {
  if (!file_) return {};
  errno = 0;
  const size_t n = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
  require(std::ferror(file_.get()) == 0, path_, ": cannot be read: ", std::strerror(errno));
  if (n == 0 && !program_.empty()) {
    const int status = ::pclose(file_.release());
    require(!WIFEXITED(status) || WEXITSTATUS(status) != 127, path_, ": the program \"", program_,
            "\" that unpacks it is missing; install it (apt-get install ", program_,
            "), or unpack the file");
    require(status == 0, path_, ": ", program_,
            " cannot unpack it: it is damaged, cut short, or not what its name says");
  }
  return {buffer_.data(), n};
}

std::string without_packing(const std::string& path) {
  return program_of(path).empty() ? path : path.substr(0, path.rfind('.'));
}

}  // namespace weft::data
