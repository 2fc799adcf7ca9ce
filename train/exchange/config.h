// config.json of a released model, read key by key. Whatever is wrong with a value is told with the
// file, the key and what was expected, and what nobody asked for is known at the end.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"

namespace weft::train {

using Json = nlohmann::ordered_json;

class Config {
 public:
  // `where` names the file, and for a table inside it the key. The object is copied.
  Config(Json object, std::string where);

  // A key that is null counts as absent. Asking for a key marks it as read.
  bool has(const std::string& key) const;
  const Json& at(const std::string& key) const;  // Throws Error where the key is absent.
  // Throw Error where the value is of another kind, or absent and without a standard.
  int64_t integer(const std::string& key, std::optional<int64_t> standard = {}) const;
  double number(const std::string& key, std::optional<double> standard = {}) const;
  bool truth(const std::string& key, std::optional<bool> standard = {}) const;
  std::string text(const std::string& key, std::optional<std::string> standard = {}) const;
  std::vector<std::string> texts(const std::string& key) const;
  Config object(const std::string& key) const;

  const Json& all() const { return object_; }

  // Marks keys that change nothing.
  void ignore(const std::vector<std::string>& keys) const;
  // The keys that nobody asked for, in the order of the file.
  std::vector<std::string> unread() const;

  const std::string& where() const { return where_; }
  template <class... Parts>
  [[noreturn]] void refuse(const std::string& key, const Parts&... parts) const {
    const auto found = object_.find(key);
    fail(where_, ": ", key, " is ", found == object_.end() ? "absent" : found->dump(), ": ",
         parts...);
  }

 private:
  Json object_;
  std::string where_;
  mutable std::set<std::string> read_;
};

// The config.json of a model's folder. Throws Error where it is missing, or no object in JSON.
Config read_config(const std::string& folder);

}  // namespace weft::train
