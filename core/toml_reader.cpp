// Tables as their readers see them: values by type and range, what nobody asked for, what is of no
// use.
#include <algorithm>
#include <sstream>

#include "core/toml_node.h"

namespace weft {

using namespace toml_node;

namespace {

[[noreturn]] void unknown_key(const Node& table, const Node::Key& key) {
  const std::string start =
      concat(key.where, ": unknown key \"", key.name, "\"",
             table.path.empty() && key.value->type == TomlType::table ? "" : in_table(table));
  std::vector<std::string> known = table.asked;
  for (const auto& [name, unused] : table.unused) known.push_back(name);
  if (known.empty()) fail(start, "; nothing may stand here");
  fail(start, "; ", suggestion(key.name, known));
}

// --- Ranges --------------------------------------------------------------------------------------

bool holds(const Integers& range, int64_t value) {
  return range.least <= value && value <= range.most;
}
bool holds(const Numbers& range, double value) {
  return (range.above ? value > range.least : value >= range.least) &&
         (range.below ? value < range.most : value <= range.most);
}

std::string expected(const Integers& range) {
  return concat("an integer from ", range.least, " to ", range.most);
}
std::string expected(const Numbers& range) {
  return concat("a number ", range.above ? "above " : "from ", range.least,
                range.above ? ", up to " : " to ", range.below ? "below " : "", range.most);
}

std::string expected(const Integers& range, int64_t value) {
  return value < range.least ? concat("at least ", range.least) : concat("at most ", range.most);
}
std::string expected(const Numbers& range, double) { return expected(range); }

// --- Typed reading -------------------------------------------------------------------------------

// How a value is read as a C++ type: its TOML type, whether and how it fits.
template <class T>
struct Reader;

template <>
struct Reader<std::string> {
  static constexpr TomlType type = TomlType::string;
  static constexpr const char *one = "a string", *many = "strings";
  static bool fits(const Node& n) { return n.type == TomlType::string; }
  static std::string read(const Node& n) { return n.text; }
};

template <>
struct Reader<int64_t> {
  static constexpr TomlType type = TomlType::integer;
  static constexpr const char* many = "integers";
  static bool fits(const Node& n) { return n.type == TomlType::integer; }
  static int64_t read(const Node& n) { return n.integer; }
};

template <>
struct Reader<double> {
  static constexpr TomlType type = TomlType::number;
  static bool fits(const Node& n) {
    return n.type == TomlType::number || n.type == TomlType::integer;
  }
  static double read(const Node& n) {
    return n.type == TomlType::number ? n.number : static_cast<double>(n.integer);
  }
};

template <>
struct Reader<bool> {
  static constexpr TomlType type = TomlType::boolean;
  static constexpr const char* one = "true or false";
  static bool fits(const Node& n) { return n.type == TomlType::boolean; }
  static bool read(const Node& n) { return n.boolean; }
};

// The value of a key, or null; the key counts as asked for.
Node* ask(Node& table, const std::string& key) {
  table.ask(key);
  const auto* found = table.find(key);
  return found ? found->value.get() : nullptr;
}

// The same for a typed reader.
Node* ask(Node& table, const std::string& key, TomlType type, bool list) {
  if (!contains(table.asked, key))
    table.read.push_back({table.path.empty() ? key : table.path + "." + key, type, list});
  return ask(table, key);
}

[[noreturn]] void missing(const Node& table, const std::string& key, const std::string& what) {
  fail(table.where, ": ", title_of(table), " lacks \"", key, "\", ", what);
}

[[noreturn]] void wrong_type(const Node& table, const std::string& key, const Node& value,
                             const std::string& what) {
  fail(value.where, ": \"", key, "\"", in_table(table), " is ", described(value), ", expected ",
       what);
}

// Text is wanted where set() gave something that TOML reads as a date, a number, ...
void take_as_text(Node& value) {
  if (value.given.empty() || value.type == TomlType::string) return;
  value.type = TomlType::string;
  value.text = value.given;
}

// The parts of "[a, "b, c", d]" as they were written. Empty where a part is missing.
std::vector<std::string> parts_of(const std::string& list) {
  std::vector<std::string> parts{""};
  char quote = 0;
  for (size_t i = 1; i + 1 < list.size(); ++i) {
    const char c = list[i];
    if (quote == '"' && c == '\\' && i + 2 < list.size()) {
      parts.back() += c, parts.back() += list[++i];
      continue;
    }
    if (c == quote)
      quote = 0;
    else if (quote == 0 && (c == '"' || c == '\''))
      quote = c;
    if (c == ',' && quote == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  for (std::string& part : parts) {
    part.erase(0, part.find_first_not_of(' '));
    part.erase(part.find_last_not_of(' ') + 1);
  }
  if (parts.back().empty()) parts.pop_back();  // a comma may stand at the end
  return contains(parts, "") ? std::vector<std::string>{} : parts;
}

bool bracketed(const std::string& text) {
  return text.size() > 1 && text.front() == '[' && text.back() == ']';
}

// A list of text is wanted where set() gave one with words that have no quotes.
void take_as_texts(Node& value) {
  const bool all_text = value.type == TomlType::array &&
                        std::all_of(value.elements.begin(), value.elements.end(),
                                    [](const NodePtr& e) { return e->type == TomlType::string; });
  if (all_text || !bracketed(value.given)) return;
  value.elements.clear();
  for (const std::string& part : parts_of(value.given)) {
    value.elements.push_back(value_given(part, value.where));
    value.elements.back()->where = value.where;
    take_as_text(*value.elements.back());
  }
  if (!value.elements.empty()) value.type = TomlType::array;
}

std::string in_toml(const std::string& value) { return quoted(value); }
std::string in_toml(int64_t value) { return std::to_string(value); }
std::string in_toml(double value) { return number_text(value + 0.0); }  // -0 is 0
std::string in_toml(bool value) { return value ? "true" : "false"; }
template <class T>
std::string in_toml(const std::vector<T>& values) {
  std::vector<std::string> texts;
  for (const T& value : values) texts.push_back(in_toml(value));
  return "[" + joined(texts) + "]";
}

// Notes a value that a reader takes, and hands it on.
template <class T>
T take(Node& table, const std::string& key, const T& value, bool given = true) {
  table.taken[key] = {in_toml(value), given};
  return value;
}

template <class T>
T checked(Node& table, const std::string& key, const Node& value) {
  if (!Reader<T>::fits(value)) wrong_type(table, key, value, Reader<T>::one);
  return Reader<T>::read(value);
}

template <class T>
T read_one(Node& table, const std::string& key, const T* fallback) {
  Node* const value = ask(table, key, Reader<T>::type, /*list=*/false);
  if (!value && fallback) return take(table, key, *fallback, /*given=*/false);
  if (!value) missing(table, key, Reader<T>::one);
  if constexpr (std::is_same_v<T, std::string>) take_as_text(*value);
  return take(table, key, checked<T>(table, key, *value));
}

template <class T, class Range>
T read_number(Node& table, const std::string& key, const Range& range, const T* fallback) {
  const Node* const value = ask(table, key, Reader<T>::type, /*list=*/false);
  if (!value && fallback) return take(table, key, *fallback, /*given=*/false);
  if (!value) missing(table, key, expected(range));
  if (!Reader<T>::fits(*value)) wrong_type(table, key, *value, expected(range));
  const T number = Reader<T>::read(*value);
  if (!holds(range, number))
    fail(value->where, ": ", key, " = ", number, in_table(table), ", expected ",
         expected(range, number));
  return take(table, key, number);
}

// The elements of an array.
template <class T>
std::vector<T> read_all(const Node& table, const std::string& key, const Node& value) {
  const std::string what = concat("an array of ", Reader<T>::many);
  if (value.type != TomlType::array) wrong_type(table, key, value, what);
  std::vector<T> all;
  for (const NodePtr& element : value.elements) {
    if (!Reader<T>::fits(*element))
      fail(element->where, ": \"", key, "\"", in_table(table), " holds ", described(*element),
           ", expected ", what);
    all.push_back(Reader<T>::read(*element));
  }
  return all;
}

std::vector<std::string> read_one_or_more(Node& table, const std::string& key,
                                          const std::string* fallback) {
  Node* const value = ask(table, key, TomlType::string, /*list=*/false);
  if (!value && fallback) return take(table, key, std::vector{*fallback}, /*given=*/false);
  if (!value) missing(table, key, "a string or an array of strings");
  if (bracketed(value->given)) take_as_texts(*value);
  if (value->type == TomlType::array)
    return take(table, key, read_all<std::string>(table, key, *value));
  take_as_text(*value);
  return take(table, key, std::vector{checked<std::string>(table, key, *value)});
}

void finish_node(Node& node) {
  for (const NodePtr& element : node.elements)
    if (element->type == TomlType::table) finish_node(*element);
  std::erase_if(node.keys, [&](const Node::Key& key) {
    const auto found = node.unused.find(key.name);
    if (found == node.unused.end()) return false;
    const bool table = key.value->type == TomlType::table;
    require(found->second.dropped, key.where, ": ",
            table ? title_of(*key.value) : concat("\"", key.name, "\"", in_table(node)),
            " is not used: ", found->second.why);
    return true;
  });
  for (const auto& key : node.keys) {
    if (!contains(node.asked, key.name)) unknown_key(node, key);
    finish_node(*key.value);
  }
}

}  // namespace

std::string toml_node::described(const Node& node) {
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

TomlTable::TomlTable() : node_(std::make_shared<Node>()) { node_->where = "(no file)"; }
TomlTable::TomlTable(std::shared_ptr<Node> node) : node_(std::move(node)) {}

std::string TomlTable::string(const std::string& key) const {
  return read_one<std::string>(*node_, key, nullptr);
}
std::string TomlTable::string(const std::string& key, const std::string& fallback) const {
  return read_one(*node_, key, &fallback);
}
std::string TomlTable::one_of(const std::string& key, const std::vector<std::string>& known,
                              const std::string& fallback) const {
  const std::string value = string(key, fallback);
  if (!contains(known, value)) refuse(key, key, " = \"", value, "\"; ", suggestion(value, known));
  return value;
}
int64_t TomlTable::integer(const std::string& key, Integers range) const {
  return read_number<int64_t>(*node_, key, range, nullptr);
}
int64_t TomlTable::integer(const std::string& key, Integers range, int64_t fallback) const {
  return read_number(*node_, key, range, &fallback);
}
double TomlTable::number(const std::string& key, Numbers range) const {
  return read_number<double>(*node_, key, range, nullptr);
}
double TomlTable::number(const std::string& key, Numbers range, double fallback) const {
  return read_number(*node_, key, range, &fallback);
}
bool TomlTable::boolean(const std::string& key) const {
  return read_one<bool>(*node_, key, nullptr);
}
bool TomlTable::boolean(const std::string& key, bool fallback) const {
  return read_one(*node_, key, &fallback);
}

std::vector<std::string> TomlTable::strings(const std::string& key) const {
  Node* const value = ask(*node_, key, TomlType::string, /*list=*/true);
  if (!value) missing(*node_, key, "an array of strings");
  take_as_texts(*value);
  return take(*node_, key, read_all<std::string>(*node_, key, *value));
}
std::vector<std::string> TomlTable::one_or_more(const std::string& key) const {
  return read_one_or_more(*node_, key, nullptr);
}
std::vector<std::string> TomlTable::one_or_more(const std::string& key,
                                                const std::string& fallback) const {
  return read_one_or_more(*node_, key, &fallback);
}
std::vector<int64_t> TomlTable::integers(const std::string& key, Integers range,
                                         const std::vector<int64_t>& fallback) const {
  const Node* const value = ask(*node_, key, TomlType::integer, /*list=*/true);
  if (!value) return take(*node_, key, fallback, /*given=*/false);
  const std::vector<int64_t> all = read_all<int64_t>(*node_, key, *value);
  for (size_t i = 0; i < all.size(); ++i)
    if (!holds(range, all[i]))
      fail(value->elements[i]->where, ": ", key, in_table(*node_), " holds ", all[i], ", expected ",
           expected(range, all[i]));
  return take(*node_, key, all);
}

TomlTable TomlTable::table(const std::string& key) const {
  node_->ask(key);
  if (const auto* found = node_->find(key)) {
    if (found->value->type != TomlType::table) wrong_type(*node_, key, *found->value, "a table");
    return TomlTable(found->value);
  }
  NodePtr& absent = node_->absent[key];
  if (!absent) {
    absent = std::make_shared<Node>();
    absent->where = node_->where;
    absent->path = node_->path.empty() ? key : node_->path + "." + key;
  }
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

void TomlTable::unused(const std::string& key, const std::string& why, bool dropped) const {
  node_->unused[key] = {why, dropped};
}

std::vector<TomlKey> TomlTable::known() const {
  std::vector<TomlKey> all = node_->read;
  const auto add = [&](const NodePtr& node) {
    const std::vector<TomlKey> more = TomlTable(node).known();
    all.insert(all.end(), more.begin(), more.end());
  };
  for (const auto& key : node_->keys) add(key.value);
  for (const auto& [name, node] : node_->absent) add(node);
  return all;
}

std::map<std::string, TomlValue> TomlTable::values() const {
  std::map<std::string, TomlValue> all;
  for (const auto& [key, value] : node_->taken)
    all[node_->path.empty() ? key : node_->path + "." + key] = value;
  for (const auto& key : node_->keys) all.merge(TomlTable(key.value).values());
  for (const auto& [name, node] : node_->absent) all.merge(TomlTable(node).values());
  return all;
}

bool TomlTable::overridden(const std::string& key) const {
  const auto* found = node_->find(key);
  return found && found->value->overridden;
}

std::string TomlTable::peek(const std::string& path) const {
  NodePtr at = node_;
  std::istringstream parts(path);
  for (std::string name; std::getline(parts, name, '.');) {
    const auto* found = at->find(name);
    if (!found) return "";
    at = found->value;
  }
  return at->type == TomlType::string ? at->text : "";
}

}  // namespace weft
