// Is a text of HTML or SVG whole? For tests of what the program draws.
#pragma once

#include <regex>
#include <set>
#include <string>
#include <vector>

namespace weft::tests {

inline size_t count_of(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

// The first tag that is not well formed, or that does not end what was begun; empty if all are.
inline std::string markup_fault(std::string text) {
  for (const char* raw : {"script", "style"}) {  // what they hold is no markup
    const std::string begin = std::string("<") + raw, end = std::string("</") + raw + ">";
    for (size_t at = 0; (at = text.find(begin, at)) != std::string::npos;) {
      const size_t from = text.find('>', at) + 1, to = text.find(end, from);
      if (to == std::string::npos) return begin;
      text.erase(from, to - from);
      at = from;
    }
  }
  static const std::set<std::string> alone = {"meta", "input", "br"};
  static const std::regex tag(
      "<(?:!doctype html|!--[^<>]*--|(/?)([a-z0-9]+)((?: [a-zA-Z-]+(?:=\"[^\"<>]*\")?)*)(/?))>");
  std::vector<std::string> open;
  std::smatch m;
  for (size_t at = 0; (at = text.find('<', at)) != std::string::npos;) {
    const std::string one = text.substr(at, text.find('>', at) + 1 - at);
    if (!std::regex_match(one, m, tag)) return one;
    at += one.size();
    const std::string name = m[2];
    if (name.empty() || m[4] == "/" || alone.count(name) > 0) continue;
    if (m[1] != "/") {
      open.push_back(name);
    } else {
      if (open.empty() || open.back() != name) return one;
      open.pop_back();
    }
  }
  return open.empty() ? "" : "<" + open.back() + "> without an end";
}

}  // namespace weft::tests
