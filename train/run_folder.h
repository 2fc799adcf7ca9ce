// The files of a run's folder that are the program's own: OUT/checkpoints/step-NNNNNNNNNN.h5, the
// very name that the program writes for a step, and OUT/best.h5, each a regular file; and where the
// recipe wants them their twins, STEP.safetensors and best.safetensors (train/twin.h). Nothing else
// there is ever read as a checkpoint, replaced or removed. A twin goes before its checkpoint, so
// that none is left alone. Those who change a folder hold its RunLock.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft::train {

struct SavedStep {
  int64_t step = 0;
  std::string path;
};

std::string checkpoint_path(const std::string& out, int64_t step);
std::string best_path(const std::string& out);
// "run/best.h5" -> "run/best.safetensors".
std::string twin_path(const std::string& checkpoint);
// The step of a name that checkpoint_path makes; -1 for every other name.
int64_t step_of_name(std::string_view name);

// The checkpoints of a run's folder by step, oldest first; none where there is no folder. Throws
// Error if a folder cannot be listed.
std::vector<SavedStep> checkpoints_of(const std::string& out);
// Is there a best.h5 of ours? Throws Error if the folder cannot be looked into.
bool has_best(const std::string& out);
// The folder of the run that a checkpoint belongs to by its place.
std::string run_of(const std::string& checkpoint);
// A checkpoint file itself, or the best (or else newest) one of a run's folder.
std::string find_checkpoint(const std::string& path);

// Keeps the newest `keep`, and that of step `spare`; removes the others with their twins. Throws
// Error if one stays.
void prune_checkpoints(const std::string& out, int64_t keep, int64_t spare = -1);
// Removes the checkpoints after `step` (-1: all) and, if asked to, best.h5, in an order that leaves
// at every moment the run as it was or none: the newest checkpoint goes last, best.h5 right before
// it.
void remove_checkpoints(const std::string& out, int64_t after, bool with_best);
// Throws Error where something stands at a path that no run made: a folder, a link, a device.
void require_own(const std::string& path);
// Makes best.h5 a second name of a checkpoint, after the twin of the old one is removed, which
// would be of another step. Throws Error, with the old one untouched.
void renew_best(const std::string& out, const std::string& checkpoint);

}  // namespace weft::train
