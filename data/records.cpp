#include "data/records.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"

namespace weft::data {
namespace {

using nlohmann::json;

std::string text_in(const json& record, const std::string& field, const std::string& where) {
  require(!record.is_discarded(), where, " is no JSON; expected an object in each line");
  require(record.is_object(), where, " is ", record.type_name(), ", expected an object");
  const auto found = record.find(field);
  if (found == record.end()) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : record.items()) keys.push_back(key);
    fail(where, " has no field \"", field, "\"; ", suggestion(field, keys));
  }
  require(found->is_string(), where, ": its field \"", field, "\" is ", found->type_name(),
          ", expected text");
  return found->get<std::string>();
}

}  // namespace

std::function<void(Document&&)> field_of_records(const std::string& path, const std::string& field,
                                                 std::function<void(Document&&)> take) {
  return [path, field, take = std::move(take),
          line = std::make_shared<int64_t>(0)](Document&& document) {
    const std::string where = concat(path, ": record ", ++*line);
    const json record = json::parse(document.text, nullptr, /*allow_exceptions=*/false);
    document.text = text_in(record, field, where);
    if (!document.text.empty()) take(std::move(document));
  };
}

}  // namespace weft::data
