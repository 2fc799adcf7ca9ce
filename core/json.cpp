#include "core/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/text.h"

namespace weft {

using nlohmann::json;

std::string json_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

json parse_json(std::string_view text, const std::string& what) {
  const size_t foreign = first_not_utf8(text);
  require(foreign == std::string_view::npos, what, " is not UTF-8 from byte ", foreign, " on");
  constexpr int kMostLevels = 100;
  std::vector<std::set<std::string>> keys;  // of the objects around the place that is read
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    require(depth <= kMostLevels, what, " has more than ", kMostLevels, " levels");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key)
      require(keys.back().insert(value.get<std::string>()).second, what, " holds the key ",
              json_line(value.get<std::string>()), " twice in one object");
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& e) {
    fail(what, " is no JSON: it cannot be read from byte ", e.byte, " on");
  } catch (const json::exception&) {
    fail(what, " holds a number that no 64 bits hold");
  }
}

}  // namespace weft
