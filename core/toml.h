// TOML as plain values that remember where they were written, so that every complaint about a
// recipe names its file, line and column. Tables also remember which keys were asked for: what was
// written but never asked for is a mistake (finish()), and what was asked for is the list of known
// names that the message shows. No number is read without the range that it must lie in.
//
//   const TomlTable recipe = toml_from_file("recipes/x.toml");
//   const TomlTable t = recipe.table("gated_linear");
//   const int64_t heads = t.integer("heads", {1, 1024}, 4);
//   recipe.finish();   // recipes/x.toml:9:1: unknown key "head" in [gated_linear];
//                      // did you mean "heads"? known: heads, key_width
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace weft {

enum class TomlType : uint8_t { string, integer, number, boolean, array, table, date };

// The numbers that a key takes, both ends included. What is no number lies in no range.
struct Integers {
  int64_t least, most;
};
struct Numbers {
  double least, most;
  bool above = false, below = false;  // the end itself is left out: least, most
};

// A key that a typed reader asked for, whether it is there or not.
struct TomlKey {
  std::string path;  // "train.steps"
  TomlType type;     // of a list, that of its elements
  bool list;
};

// What a typed reader took for a key.
struct TomlValue {
  std::string text;    // in TOML, numbers in their shortest form
  bool given = false;  // the key is there; else it is the reader's fallback
};

// A handle on a table: copies share it, its read marks and what set() changes.
class TomlTable {
 public:
  TomlTable();  // an empty table

  // Typed values. The form without `fallback` throws Error where the key is absent; all throw where
  // the value has another type or lies outside the range. number() takes integers too. Text is what
  // set() was given, letter for letter, even where that looks like a date or a number.
  std::string string(const std::string& key) const;
  std::string string(const std::string& key, const std::string& fallback) const;
  // A name out of a list; what is not in it is told with the nearest that is.
  std::string one_of(const std::string& key, const std::vector<std::string>& known,
                     const std::string& fallback) const;
  int64_t integer(const std::string& key, Integers range) const;
  int64_t integer(const std::string& key, Integers range, int64_t fallback) const;
  double number(const std::string& key, Numbers range) const;
  double number(const std::string& key, Numbers range, double fallback) const;
  bool boolean(const std::string& key) const;
  bool boolean(const std::string& key, bool fallback) const;
  // Lists. A single value is not taken for a list of one, but by one_or_more().
  std::vector<std::string> strings(const std::string& key) const;
  std::vector<std::string> one_or_more(const std::string& key) const;
  std::vector<std::string> one_or_more(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> integers(const std::string& key, Integers range,
                                const std::vector<int64_t>& fallback) const;
  // Sub-tables. An absent one reads as empty, an absent array of tables as none.
  TomlTable table(const std::string& key) const;
  std::vector<TomlTable> tables(const std::string& key) const;

  bool has(const std::string& key) const;       // counts as asking for the key
  TomlType type(const std::string& key) const;  // throws Error where the key is absent
  std::vector<std::string> keys() const;        // in the order of the file; asks for none
  bool empty() const { return keys().empty(); }

  // "recipes/x.toml:9:1"; for a key, the place of its value. An absent key gives the table's place.
  std::string where() const;
  std::string where(const std::string& key) const;
  // "[gated_linear]", or "the file" for the outermost table.
  std::string title() const;
  // Throws an Error that starts with the place of the key's value.
  template <class... Parts>
  [[noreturn]] void refuse(const std::string& key, const Parts&... parts) const {
    fail(where(key), ": ", parts...);
  }

  // Throws Error for the first key, here or in a sub-table, that nobody asked for.
  void finish() const;
  // Says of a key that it is of no use here, and why. finish() refuses it with that reason; where
  // `dropped` is true (an override made it useless) it takes the key out instead.
  void unused(const std::string& key, const std::string& why, bool dropped) const;
  // What the typed readers asked for so far, here and in sub-tables.
  std::vector<TomlKey> known() const;
  // The values that the typed readers took so far, fallbacks included, by "train.steps". Tables
  // whose values are equal mean the same to their readers, however they are written.
  std::map<std::string, TomlValue> values() const;
  // True where set() gave the key.
  bool overridden(const std::string& key) const;
  // The text at "local.type", without asking for it; "" where there is none.
  std::string peek(const std::string& path) const;

  // Sets "train.steps" (tables on the way are made) to a value written in TOML. Where text is
  // wanted, or a list of it, quotes may be left out. Its place reads "--set train.steps=500".
  void set(const std::string& path, const std::string& value);

  // TOML that reads back as the same values, in the same order; comments are gone.
  std::string to_text() const;

  struct Node;
  explicit TomlTable(std::shared_ptr<Node> node);

 private:
  std::shared_ptr<Node> node_;
};

// Throw Error that names file, line and column where the text is not TOML.
TomlTable toml_from_file(const std::string& path);
TomlTable toml_from_text(std::string_view text, const std::string& name);

}  // namespace weft
