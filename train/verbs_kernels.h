// The verbs about operations: gradcheck, op, bench.
#pragma once

namespace CLI {
class App;
}

namespace weft::train {

void add_kernel_verbs(CLI::App& app, int& status);

}  // namespace weft::train
