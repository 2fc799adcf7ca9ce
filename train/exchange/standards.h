// What a configuration class means where config.json has no such key, for formats whose class has
// many numbers of its own.
#pragma once

#include "train/exchange/keys.h"

namespace weft::train {

// Calls `keys` as if config.json had these keys where it has none of that name, or null. A key
// counts as read where `keys` reads it.
void with_standards(const Keys& k, const Json& standards, void (*keys)(const Keys& k));

}  // namespace weft::train
