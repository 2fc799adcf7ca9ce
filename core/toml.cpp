#include "core/toml.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "core/file.h"
#include "core/text.h"

namespace weft {

// A value and where it stands. Tables keep their keys in the order of the file.
struct TomlTable::Node {
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

  Key* find(const std::string& name) {
    const auto at = std::find_if(keys.begin(), keys.end(), [&](auto& k) { return k.name == name; });
    return at == keys.end() ? nullptr : &*at;
  }
  void ask(const std::string& name) {
    if (!contains(asked, name)) asked.push_back(name);
  }
};

namespace {

using Node = TomlTable::Node;
using NodePtr = std::shared_ptr<Node>;

std::string title_of(const Node& table) {
  return table.path.empty() ? "the file" : "[" + table.path + "]";
}

// --- From toml++ ----------------------------------------------------------------------------------

std::string place(const std::string& file, const toml::source_region& region) {
  if (region.begin.line == 0) return file;
  return concat(file, ":", region.begin.line, ":", region.begin.column);
}

NodePtr convert(const toml::node& from, const std::string& file, const std::string& path) {
  const auto node = std::make_shared<Node>();
  node->where = place(file, from.source());
  node->path = path;
  if (const auto* table = from.as_table()) {
    // toml++ sorts keys by name; the file's order comes back from their places.
    std::vector<std::pair<toml::source_position, Node::Key>> found;
    for (const auto& [key, value] : *table) {
      const std::string name(key.str());
      found.push_back({key.source().begin,
                       {name, place(file, key.source()),
                        convert(value, file, path.empty() ? name : path + "." + name)}});
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& [at, key] : found) node->keys.push_back(std::move(key));
  } else if (const auto* array = from.as_array()) {
    node->type = TomlType::array;
    for (const toml::node& element : *array) node->elements.push_back(convert(element, file, path));
  } else if (const auto* text = from.as_string()) {
    node->type = TomlType::string;
    node->text = text->get();
  } else if (const auto* integer = from.as_integer()) {
    node->type = TomlType::integer;
    node->integer = integer->get();
  } else if (const auto* number = from.as_floating_point()) {
    node->type = TomlType::number;
    node->number = number->get();
  } else if (const auto* boolean = from.as_boolean()) {
    node->type = TomlType::boolean;
    node->boolean = boolean->get();
  } else {
    node->type = TomlType::date;
    std::ostringstream out;
    from.visit([&](const auto& value) {
      if constexpr (toml::is_value<decltype(value)>) out << value.get();
    });
    node->text = out.str();
  }
  return node;
}

// --- Messages -------------------------------------------------------------------------------------

// What a value is, for messages: an integer (4), a string ("4"), ...
std::string described(const Node& node) {
  switch (node.type) {
    case TomlType::string:
      return "a string (\"" + node.text + "\")";
    case TomlType::integer:
      return concat("an integer (", node.integer, ")");
    case TomlType::number:
      return concat("a number (", node.number, ")");
    case TomlType::boolean:
      return node.boolean ? "a boolean (true)" : "a boolean (false)";
    case TomlType::array:
      return concat("an array of ", node.elements.size(),
                    node.elements.size() == 1 ? " value" : " values");
    case TomlType::table:
      return "a table";
    case TomlType::date:
      return "a date (" + node.text + ")";
  }
  return "nothing";
}

std::string in_table(const Node& table) {
  return table.path.empty() ? "" : " in [" + table.path + "]";
}

[[noreturn]] void unknown_key(const Node& table, const Node::Key& key,
                              const std::vector<std::string>& known) {
  const std::string start =
      concat(key.where, ": unknown key \"", key.name, "\"",
             table.path.empty() && key.value->type == TomlType::table ? "" : in_table(table));
  if (known.empty()) fail(start, "; nothing may stand here");
  fail(start, "; ", suggestion(key.name, known));
}

// --- Typed reading ----------------------------------------------------------------------------------

// How a C++ type is read from a value: its name in messages, and whether and how it fits.
template <class T>
struct Reader;

template <>
struct Reader<std::string> {
  static constexpr const char *one = "a string", *many = "strings";
  static bool fits(const Node& n) { return n.type == TomlType::string; }
  static std::string read(const Node& n) { return n.text; }
};

template <>
struct Reader<int64_t> {
  static constexpr const char *one = "an integer", *many = "integers";
  static bool fits(const Node& n) { return n.type == TomlType::integer; }
  static int64_t read(const Node& n) { return n.integer; }
};

template <>
struct Reader<double> {
  static constexpr const char *one = "a number", *many = "numbers";
  static bool fits(const Node& n) {
    return n.type == TomlType::number || n.type == TomlType::integer;
  }
  static double read(const Node& n) {
    return n.type == TomlType::number ? n.number : static_cast<double>(n.integer);
  }
};

template <>
struct Reader<bool> {
  static constexpr const char *one = "true or false", *many = "booleans";
  static bool fits(const Node& n) { return n.type == TomlType::boolean; }
  static bool read(const Node& n) { return n.boolean; }
};

// The value of a key, or null; the key counts as asked for.
const Node* ask(Node& table, const std::string& key) {
  table.ask(key);
  const auto* found = table.find(key);
  return found ? found->value.get() : nullptr;
}

[[noreturn]] void missing(const Node& table, const std::string& key, const std::string& what) {
  fail(table.where, ": ", title_of(table), " lacks \"", key, "\", ", what);
}

[[noreturn]] void wrong_type(const Node& table, const std::string& key, const Node& value,
                             const std::string& what) {
  fail(value.where, ": \"", key, "\"", in_table(table), " is ", described(value), ", expected ",
       what);
}

template <class T>
T read_one(Node& table, const std::string& key, const T* fallback) {
  const Node* value = ask(table, key);
  if (!value && fallback) return *fallback;
  if (!value) missing(table, key, Reader<T>::one);
  if (!Reader<T>::fits(*value)) wrong_type(table, key, *value, Reader<T>::one);
  return Reader<T>::read(*value);
}

template <class T>
std::vector<T> read_many(Node& table, const std::string& key, const std::vector<T>* fallback) {
  const std::string what = concat("an array of ", Reader<T>::many);
  const Node* value = ask(table, key);
  if (!value && fallback) return *fallback;
  if (!value) missing(table, key, what);
  if (value->type != TomlType::array) wrong_type(table, key, *value, what);
  std::vector<T> all;
  for (const NodePtr& element : value->elements) {
    if (!Reader<T>::fits(*element))
      fail(element->where, ": \"", key, "\"", in_table(table), " holds ", described(*element),
           ", expected ", what);
    all.push_back(Reader<T>::read(*element));
  }
  return all;
}

// --- Back to text -----------------------------------------------------------------------------------

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += '\\', out += c;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7f)
      out += "\\u00", out += "0123456789abcdef"[byte >> 4], out += "0123456789abcdef"[byte & 15];
    else
      out += c;
  }
  return out + "\"";
}

std::string key_text(const std::string& key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return (c < 0x80 && std::isalnum(c)) || c == '_' || c == '-';
  });
  return bare ? key : quoted(key);
}

std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, number).ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// A value on one line.
std::string inline_text(const Node& node) {
  std::string out;
  switch (node.type) {
    case TomlType::string:
      return quoted(node.text);
    case TomlType::integer:
      return std::to_string(node.integer);
    case TomlType::number:
      return number_text(node.number);
    case TomlType::boolean:
      return node.boolean ? "true" : "false";
    case TomlType::date:
      return node.text;
    case TomlType::array:
      for (const NodePtr& e : node.elements) out += (out.empty() ? "" : ", ") + inline_text(*e);
      return "[" + out + "]";
    case TomlType::table:
      for (const auto& key : node.keys)
        out += (out.empty() ? "" : ", ") + key_text(key.name) + " = " + inline_text(*key.value);
      return "{" + out + "}";
  }
  return out;
}

bool is_table_array(const Node& node) {
  return node.type == TomlType::array && !node.elements.empty() &&
         std::all_of(node.elements.begin(), node.elements.end(),
                     [](const NodePtr& e) { return e->type == TomlType::table; });
}

// Plain values come first: after a header they would belong to the sub-table.
void write_table(const Node& table, const std::string& path, std::string& out) {
  for (const auto& key : table.keys)
    if (key.value->type != TomlType::table && !is_table_array(*key.value))
      out += key_text(key.name) + " = " + inline_text(*key.value) + "\n";
  for (const auto& key : table.keys) {
    const std::string name = path.empty() ? key_text(key.name) : path + "." + key_text(key.name);
    if (key.value->type == TomlType::table) {
      out += (out.empty() ? "[" : "\n[") + name + "]\n";
      write_table(*key.value, name, out);
    } else if (is_table_array(*key.value)) {
      for (const NodePtr& element : key.value->elements) {
        out += (out.empty() ? "[[" : "\n[[") + name + "]]\n";
        write_table(*element, name, out);
      }
    }
  }
}

void finish_node(const Node& node) {
  for (const NodePtr& element : node.elements)
    if (element->type == TomlType::table) finish_node(*element);
  for (const auto& key : node.keys) {
    if (!contains(node.asked, key.name)) unknown_key(node, key, node.asked);
    finish_node(*key.value);
  }
}

// Bytes that are no text would make a checkpoint that nobody can open.
void require_utf8(std::string_view text, const std::string& name) {
  const size_t at = first_not_utf8(text);
  if (at == std::string_view::npos) return;
  const std::string_view before = text.substr(0, at);
  const size_t line = before.rfind('\n') + 1;  // 0 where there is none
  fail(name, ":", std::count(before.begin(), before.end(), '\n') + 1, ":", at - line + 1,
       ": this is not UTF-8: the byte ", as_utf8(text.substr(at, 1)),
       at == 0 && text.size() > 1 && (text[0] == '\xff' || text[0] == '\xfe')
           ? " (is the file UTF-16?)"
           : "",
       "; save the file as UTF-8");
}

// "\\u0000" is TOML, but ends a path or a text early.
void require_no_zero(const Node& node) {
  for (const auto& key : node.keys) {
    require(key.name.find('\0') == std::string::npos, key.where,
            ": a key holds the character \\u0000");
    require_no_zero(*key.value);
  }
  for (const NodePtr& element : node.elements) require_no_zero(*element);
  require(node.text.find('\0') == std::string::npos, node.where,
          ": a string holds the character \\u0000, which no text and no path may");
}

NodePtr parse(std::string_view text, const std::string& name) {
  try {
    return convert(toml::parse(text), name, "");
  } catch (const toml::parse_error& error) {
    const std::string what(error.description());
    const bool quote = what.find("string") != std::string::npos &&
                       what.find("control character") != std::string::npos;
    fail(place(name, error.source()), ": this is not TOML: ", what,
         quote ? "; is a quotation mark missing at the end of the line?" : "");
  }
}

}  // namespace

TomlTable::TomlTable() : node_(std::make_shared<Node>()) { node_->where = "(no file)"; }
TomlTable::TomlTable(std::shared_ptr<Node> node) : node_(std::move(node)) {}

std::string TomlTable::string(const std::string& key) const {
  return read_one<std::string>(*node_, key, nullptr);
}
std::string TomlTable::string(const std::string& key, const std::string& fallback) const {
  return read_one(*node_, key, &fallback);
}
int64_t TomlTable::integer(const std::string& key) const {
  return read_one<int64_t>(*node_, key, nullptr);
}
int64_t TomlTable::integer(const std::string& key, int64_t fallback) const {
  return read_one(*node_, key, &fallback);
}
double TomlTable::number(const std::string& key) const {
  return read_one<double>(*node_, key, nullptr);
}
double TomlTable::number(const std::string& key, double fallback) const {
  return read_one(*node_, key, &fallback);
}
bool TomlTable::boolean(const std::string& key) const {
  return read_one<bool>(*node_, key, nullptr);
}
bool TomlTable::boolean(const std::string& key, bool fallback) const {
  return read_one(*node_, key, &fallback);
}

std::vector<std::string> TomlTable::strings(const std::string& key) const {
  return read_many<std::string>(*node_, key, nullptr);
}
std::vector<std::string> TomlTable::strings(const std::string& key,
                                            const std::vector<std::string>& fallback) const {
  return read_many(*node_, key, &fallback);
}
std::vector<int64_t> TomlTable::integers(const std::string& key) const {
  return read_many<int64_t>(*node_, key, nullptr);
}
std::vector<int64_t> TomlTable::integers(const std::string& key,
                                         const std::vector<int64_t>& fallback) const {
  return read_many(*node_, key, &fallback);
}
std::vector<double> TomlTable::numbers(const std::string& key) const {
  return read_many<double>(*node_, key, nullptr);
}
std::vector<double> TomlTable::numbers(const std::string& key,
                                       const std::vector<double>& fallback) const {
  return read_many(*node_, key, &fallback);
}

TomlTable TomlTable::table(const std::string& key) const {
  node_->ask(key);
  if (const auto* found = node_->find(key)) {
    if (found->value->type != TomlType::table) wrong_type(*node_, key, *found->value, "a table");
    return TomlTable(found->value);
  }
  const auto absent = std::make_shared<Node>();
  absent->where = node_->where;
  absent->path = node_->path.empty() ? key : node_->path + "." + key;
  return TomlTable(absent);
}

std::vector<TomlTable> TomlTable::tables(const std::string& key) const {
  const Node* value = ask(*node_, key);
  if (!value) return {};
  if (value->type != TomlType::array) wrong_type(*node_, key, *value, "an array of tables");
  std::vector<TomlTable> all;
  for (const NodePtr& element : value->elements) {
    if (element->type != TomlType::table)
      fail(element->where, ": \"", key, "\"", in_table(*node_), " holds ", described(*element),
           ", expected an array of tables");
    all.push_back(TomlTable(element));
  }
  return all;
}

bool TomlTable::has(const std::string& key) const { return ask(*node_, key) != nullptr; }

TomlType TomlTable::type(const std::string& key) const {
  const Node* value = ask(*node_, key);
  if (!value) missing(*node_, key, "which must be there");
  return value->type;
}

std::vector<std::string> TomlTable::keys() const {
  std::vector<std::string> names;
  for (const auto& key : node_->keys) names.push_back(key.name);
  return names;
}

std::string TomlTable::where() const { return node_->where; }

std::string TomlTable::where(const std::string& key) const {
  const auto* found = node_->find(key);
  return found ? found->value->where : node_->where;
}

std::string TomlTable::title() const { return title_of(*node_); }

void TomlTable::finish() const { finish_node(*node_); }

void TomlTable::check_known(const std::vector<std::string>& known) const {
  for (const auto& key : node_->keys)
    if (!contains(known, key.name)) unknown_key(*node_, key, known);
  for (const std::string& name : known) node_->ask(name);
}

std::vector<std::string> TomlTable::asked() const { return node_->asked; }

void TomlTable::set(const std::string& path, const std::string& value) {
  const std::string origin = as_utf8("--set " + path + "=" + value);
  require(first_not_utf8(path + value) == std::string::npos, origin,
          ": this is not UTF-8, as a recipe must be; where it is the name of a file, reach that by "
          "another name, as a link");
  NodePtr read;
  try {
    const NodePtr parsed = parse("value = " + value, origin);
    if (parsed->keys.size() == 1) read = parsed->keys.front().value;
  } catch (const Error&) {
  }
  if (!read) {
    read = std::make_shared<Node>();
    read->type = TomlType::string;
    read->text = value;
  }

  require_no_zero(*read);
  NodePtr at = node_;
  std::string name;
  std::istringstream parts(path);
  std::vector<std::string> names;
  while (std::getline(parts, name, '.')) names.push_back(name);
  const bool whole = !path.empty() && path.back() != '.' &&
                     std::none_of(names.begin(), names.end(), [](auto& n) { return n.empty(); });
  require(whole, origin, ": \"", path, "\" names no key; expected as in train.steps");
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string here = at->path.empty() ? names[i] : at->path + "." + names[i];
    const bool last = i + 1 == names.size();
    Node::Key* key = at->find(names[i]);
    if (!key) {
      at->keys.push_back({names[i], origin, std::make_shared<Node>()});
      key = &at->keys.back();
      key->value->where = origin, key->value->path = here;
    }
    if (last) {
      // Places inside a value given on the command line mean nothing to its reader.
      const auto settle = [&](auto& self, Node& node, const std::string& node_path) -> void {
        node.where = origin, node.path = node_path;
        for (const NodePtr& element : node.elements) self(self, *element, node_path);
        for (auto& k : node.keys) k.where = origin, self(self, *k.value, node_path + "." + k.name);
      };
      settle(settle, *read, here);
      key->where = origin, key->value = read;
    } else {
      require(key->value->type == TomlType::table, origin, ": \"", here, "\" is ",
              described(*key->value), ", not a table");
      at = key->value;
    }
  }
}

std::string TomlTable::to_text() const {
  std::string out;
  write_table(*node_, "", out);
  return out;
}

TomlTable toml_from_text(std::string_view text, const std::string& name) {
  require_utf8(text, name);
  const NodePtr node = parse(text, name);
  require_no_zero(*node);
  return TomlTable(node);
}

TomlTable toml_from_file(const std::string& path) { return toml_from_text(read_file(path), path); }

}  // namespace weft
