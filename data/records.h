// Documents out of JSON lines: a field of each record.
#pragma once

#include <functional>
#include <string>

#include "data/text.h"

namespace weft::data {

// Takes the lines of a file as documents, and gives `take` the text in the field of each. Lines are
// those that are not blank. Throws Error that names the line's number among them for what is no
// JSON object, has no such field, or holds no text there.
std::function<void(Document&&)> field_of_records(const std::string& path, const std::string& field,
                                                 std::function<void(Document&&)> take);

}  // namespace weft::data
