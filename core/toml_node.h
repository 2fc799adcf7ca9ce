// What a TomlTable points to, for core/toml.cpp, which makes and writes it, and
// core/toml_reader.cpp, which reads it.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/text.h"
#include "core/toml.h"

namespace weft {

// A value and where it stands. Tables keep their keys in the order of the file.
struct TomlTable::Node {
  using NodePtr = std::shared_ptr<Node>;
  struct Key {
    std::string name, where;
    std::shared_ptr<Node> value;
  };

  TomlType type = TomlType::table;
  std::string where;
  std::string path;  // "train.schedule"; "" for the outermost table
  std::string text;  // of a string; a date as it was written
  int64_t integer = 0;
  double number = 0;
  bool boolean = false;
  std::vector<std::shared_ptr<Node>> elements;  // of an array
  std::vector<Key> keys;                        // of a table
  std::vector<std::string> asked;               // of a table, in the order of asking
  std::vector<TomlKey> read;                    // of a table: what typed readers asked for
  std::map<std::string, TomlValue> taken;       // of a table: what typed readers took
  std::map<std::string, NodePtr> absent;        // of a table: sub-tables that are not there
  struct Unused {
    std::string why;
    bool dropped = false;
  };
  std::map<std::string, Unused> unused;  // of a table, by key
  bool overridden = false;               // set() gave it
  std::string given;                     // the letters that set() was given for it

  Key* find(const std::string& name) {
    const auto at = std::find_if(keys.begin(), keys.end(), [&](auto& k) { return k.name == name; });
    return at == keys.end() ? nullptr : &*at;
  }
  void ask(const std::string& name) {
    if (!contains(asked, name)) asked.push_back(name);
  }
};

namespace toml_node {

using Node = TomlTable::Node;
using NodePtr = std::shared_ptr<Node>;

inline std::string title_of(const Node& table) {
  return table.path.empty() ? "the file" : "[" + table.path + "]";
}
inline std::string in_table(const Node& table) {
  return table.path.empty() ? "" : " in [" + table.path + "]";
}
// What a value is, for messages: an integer (4), a string ("4"), ...
std::string described(const Node& node);
// A string and a number in TOML.
std::string quoted(const std::string& text);
std::string number_text(double number);
// The value of a --set: TOML, else a string.
NodePtr value_given(const std::string& value, const std::string& origin);

}  // namespace toml_node

}  // namespace weft
