// Numbers as people read them.
#pragma once

#include <string>

namespace weft {

// "1h 02m", "3m 20s", "12s"; "?" for what is not finite.
std::string duration_text(double seconds);
// "1.20 MiB", "310 B".
std::string bytes_text(double bytes);
// "12.3k", "1.05M".
std::string count_text(double count);
// printf's text for one number: number_text("%.3g", 0.5).
std::string number_text(const char* format, double value);

}  // namespace weft
