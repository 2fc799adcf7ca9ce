#include "core/live_line.h"

#include <unistd.h>

namespace weft {

LiveLine::LiveLine(std::FILE* to) : to_(to), terminal_(isatty(fileno(to)) != 0) {}

bool LiveLine::due() const { return Clock::now() - drawn_ > std::chrono::milliseconds(100); }

void LiveLine::draw(const std::string& line) {
  drawn_ = Clock::now();
  line_ = line;
  if (terminal_)
    std::fprintf(to_, "\r\x1b[K%s", line.c_str());
  else
    std::fprintf(to_, "%s\n", line.c_str());
}

void LiveLine::say(const std::string& line) {
  if (terminal_)
    std::fprintf(to_, "\r\x1b[K%s\n%s", line.c_str(), line_.c_str());
  else
    std::fprintf(to_, "%s\n", line.c_str());
}

void LiveLine::finish() {
  if (terminal_ && !line_.empty()) std::fputs("\n", to_);
  line_.clear();
}

void LiveLine::clear() {
  if (terminal_ && !line_.empty()) std::fputs("\r\x1b[K", to_);
  line_.clear();
}

}  // namespace weft
