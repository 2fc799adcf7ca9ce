// The command line's own description of its verbs, as the manual's table.
#pragma once

#include "train/verbs/manual.h"

namespace CLI {
class App;
}

namespace weft::train {

Manual manual_of(const CLI::App& app);

}  // namespace weft::train
