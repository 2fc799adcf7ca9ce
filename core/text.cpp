#include "core/text.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/error.h"

namespace weft {
namespace {

// Letters to add, drop or change, two neighbours that change places counting once; row by row.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before, above, row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    before = std::exchange(above, row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

// A name far from the one that was meant helps less than the list of all.
bool is_near(const std::string& name, const std::string& other, size_t far) {
  if (name.empty() || other.empty()) return false;
  return 2 * far <= std::max(name.size(), other.size()) || name.starts_with(other) ||
         other.starts_with(name);
}

}  // namespace

bool contains(const std::vector<std::string>& list, const std::string& name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& known) {
  std::string best;
  size_t least = 0;
  for (const std::string& other : known) {
    const size_t far = distance(name, other);
    if (is_near(name, other, far) && (best.empty() || far < least)) best = other, least = far;
  }
  return best;
}

std::string suggestion(const std::string& name, const std::vector<std::string>& known) {
  if (known.empty()) return "none is known";
  const std::string near = nearest_name(name, known);
  return concat(near.empty() ? "" : "did you mean \"" + near + "\"? ", "known: ", joined(known));
}

std::string unknown_name(const std::string& what, const std::string& name,
                         const std::vector<std::string>& known) {
  return concat("unknown ", what, " \"", name, "\"; ", suggestion(name, known));
}

std::string joined(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

size_t utf8_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  if (size == 0 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if (first == 0xe0 && byte(1) < 0xa0) return 0;   // longer than need be
  if (first == 0xed && byte(1) >= 0xa0) return 0;  // half of a UTF-16 pair
  if (first == 0xf0 && byte(1) < 0x90) return 0;
  if (first == 0xf4 && byte(1) >= 0x90) return 0;  // beyond U+10FFFF
  return size;
}

size_t first_not_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t size = utf8_character(text.substr(at));
    if (size == 0) return at;
    at += size;
  }
  return std::string_view::npos;
}

std::string as_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t size = utf8_character(text);
    if (size > 0)
      out += text.substr(0, size);
    else
      out += "\\x", out += "0123456789ABCDEF"[static_cast<unsigned char>(text[0]) >> 4],
          out += "0123456789ABCDEF"[text[0] & 15];
    text.remove_prefix(std::max<size_t>(1, size));
  }
  return out;
}

}  // namespace weft
