#include "core/toml.h"

#include <toml++/toml.h>

#include <charconv>
#include <cmath>
#include <sstream>

#include "core/file.h"
#include "core/toml_node.h"

namespace weft {

using namespace toml_node;

namespace {

// --- From toml++ ---------------------------------------------------------------------------------

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

// --- Back to text --------------------------------------------------------------------------------

}  // namespace

std::string toml_node::quoted(const std::string& text) {
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

std::string toml_node::number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, number).ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

namespace {

std::string key_text(const std::string& key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return (c < 0x80 && std::isalnum(c)) || c == '_' || c == '-';
  });
  return bare ? key : quoted(key);
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

// A place inside a value given on the command line means nothing to its reader.
void settle(Node& node, const std::string& origin, const std::string& path) {
  node.where = origin, node.path = path, node.overridden = true;
  for (const NodePtr& element : node.elements) settle(*element, origin, path);
  for (auto& key : node.keys) {
    key.where = origin;
    settle(*key.value, origin, path + "." + key.name);
  }
}

}  // namespace

NodePtr toml_node::value_given(const std::string& value, const std::string& origin) {
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
  read->given = value;
  return read;
}

void TomlTable::set(const std::string& path, const std::string& value) {
  const std::string origin = as_utf8("--set " + path + "=" + value);
  require(first_not_utf8(path + value) == std::string::npos, origin,
          ": this is not UTF-8, as a recipe must be; where it is the name of a file, reach that by "
          "another name, as a link");
  const NodePtr read = value_given(value, origin);
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
      settle(*read, origin, here);
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
