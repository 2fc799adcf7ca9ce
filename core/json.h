// JSON on one line. Writing never fails: bytes that are not UTF-8 become the replacement character,
// and a number that is not finite becomes null.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace weft {

std::string json_line(const nlohmann::ordered_json& value);

}  // namespace weft
