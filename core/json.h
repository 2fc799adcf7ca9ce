// JSON, written and read. Writing never fails: bytes that are not UTF-8 become the replacement
// character, and a number that is not finite becomes null. Reading is strict, as JSON of other
// programs says how bytes are to be understood.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace weft {

// On one line.
std::string json_line(const nlohmann::ordered_json& value);

// The value of a text, whole. Throws Error that begins with `what` ("x.json", "x.safetensors: the
// header") for text that is no JSON or no UTF-8, for a key that an object holds twice (a library
// would keep one of them, and nobody knows which), and for more than 100 levels.
nlohmann::json parse_json(std::string_view text, const std::string& what);

}  // namespace weft
