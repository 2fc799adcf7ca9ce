// The script of every page: numbers under the pointer and the arrow keys, and matrices that open.
#pragma once

#include <string_view>

namespace weft::train {

// A page is whole without it: it only reads pictures and data that are there.
std::string_view page_script();

}  // namespace weft::train
