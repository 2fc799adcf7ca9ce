// How a run is told to stop: by Ctrl-C, or by a signal that a cluster, a closed terminal or a limit
// sends.
#pragma once

#include <atomic>

namespace weft::train {

// HUP, INT, TERM, XCPU, USR1 or USR2, once one came while stops are noted; 0 before.
extern std::atomic<int> stop_signal;

// From now on a stop signal ends the process at once, with a line that says so: nothing was trained
// yet. A signal that the parent process ignores (as nohup does SIGHUP) stays ignored. Writing to a
// closed pipe is an error of its writer and no signal. The line is left out if not `tells`.
void catch_stop_signals(bool tells = true);

// From now on a stop signal is noted in stop_signal: the run saves after the step at hand. An INT
// or TERM that comes more than a second after the first of them ends the process at once; within
// that second they are one (timeout(1) sends each twice).
void note_stop_signals();

}  // namespace weft::train
