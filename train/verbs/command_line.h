// The command line: every verb's flags, and what they are called with.
#pragma once

namespace weft::train {

// Reads the command line and runs its verb. Returns the exit status; throws what the verb throws,
// and Error for a verb or a flag that is not known.
int run_command(int argc, char** argv);

}  // namespace weft::train
