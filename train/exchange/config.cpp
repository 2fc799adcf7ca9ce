#include "train/exchange/config.h"

#include <cmath>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"

namespace weft::train {

Config::Config(Json object, std::string where)
    : object_(std::move(object)), where_(std::move(where)) {}

bool Config::has(const std::string& key) const {
  read_.insert(key);
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const Json& Config::at(const std::string& key) const {
  if (!has(key)) fail(where_, ": the key \"", key, "\" is missing");
  return object_.at(key);
}

int64_t Config::integer(const std::string& key, std::optional<int64_t> standard) const {
  if (standard && !has(key)) return *standard;
  const Json& value = at(key);
  // Some writers give whole numbers as 4.0. What is larger than any size would overflow in
  // products.
  const double number = value.is_number() ? value.get<double>() : 0.5;
  if (std::floor(number) != number || std::abs(number) > 2147483648.0)
    refuse(key, "expected a whole number of at most 2^31");
  return static_cast<int64_t>(number);
}

double Config::number(const std::string& key, std::optional<double> standard) const {
  if (standard && !has(key)) return *standard;
  const Json& value = at(key);
  if (!value.is_number()) refuse(key, "expected a number");
  return value.get<double>();
}

bool Config::truth(const std::string& key, std::optional<bool> standard) const {
  if (standard && !has(key)) return *standard;
  const Json& value = at(key);
  if (!value.is_boolean()) refuse(key, "expected true or false");
  return value.get<bool>();
}

std::string Config::text(const std::string& key, std::optional<std::string> standard) const {
  if (standard && !has(key)) return *standard;
  const Json& value = at(key);
  if (!value.is_string()) refuse(key, "expected a text");
  return value.get<std::string>();
}

std::vector<std::string> Config::texts(const std::string& key) const {
  const Json& value = at(key);
  std::vector<std::string> all;
  if (!value.is_array()) refuse(key, "expected a list of texts");
  for (const Json& item : value) {
    if (!item.is_string()) refuse(key, "expected a list of texts");
    all.push_back(item.get<std::string>());
  }
  return all;
}

Config Config::object(const std::string& key) const {
  const Json& value = at(key);
  if (!value.is_object()) refuse(key, "expected an object");
  return {value, concat(where_, ", ", key)};
}

void Config::ignore(const std::vector<std::string>& keys) const {
  read_.insert(keys.begin(), keys.end());
}

std::vector<std::string> Config::unread() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object_.items())
    if (read_.count(key) == 0 && !value.is_null()) keys.push_back(as_utf8(key));
  return keys;
}

namespace {

// Python writes numbers that JSON does not know, as a word; newer versions of transformers write
// {"__float__": "Infinity"} for it.
std::string with_words_as_objects(const std::string& text) {
  std::string out;
  bool quoted = false;
  for (size_t i = 0; i < text.size();) {
    size_t taken = 1;
    if (quoted && text[i] == '\\') taken = 2;
    if (text[i] == '"') quoted = !quoted;
    std::string put = text.substr(i, taken);
    for (const std::string word : {"-Infinity", "Infinity", "NaN"})
      if (!quoted && text.compare(i, word.size(), word) == 0) {
        taken = word.size();
        put = concat("{\"__float__\": \"", word, "\"}");
        break;
      }
    out += put;
    i += taken;
  }
  return out;
}

}  // namespace

Config read_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const nlohmann::json object = parse_json(with_words_as_objects(read_file(path)), path);
  require(object.is_object(), path, ": holds no object in JSON, expected the keys of a model");
  return {object, path};
}

}  // namespace weft::train
