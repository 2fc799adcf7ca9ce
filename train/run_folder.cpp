#include "train/run_folder.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "core/error.h"
#include "core/file.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;

std::string step_name(int64_t step) {
  char name[48];
  std::snprintf(name, sizeof name, "step-%010ld.h5", static_cast<long>(step));
  return name;
}

// What stands at a path, links not followed.
fs::file_type type_of(const std::string& path) {
  std::error_code failed;
  const fs::file_status status = fs::symlink_status(path, failed);
  require(status.type() != fs::file_type::none, path, ": cannot be looked at: ", failed.message());
  return status.type();
}

bool is_folder(const std::string& path) {
  std::error_code failed;
  const fs::file_status status = fs::status(path, failed);
  require(status.type() != fs::file_type::none, path,
          ": cannot be looked into: ", failed.message());
  return status.type() == fs::file_type::directory;
}

void remove_file(const std::string& path) {
  std::error_code failed;
  fs::remove(path, failed);
  require(!failed, path, ": cannot be removed: ", failed.message());
}

// What was removed before is removed; somebody else's is left.
void remove_twin(const std::string& checkpoint) {
  const std::string twin = twin_path(checkpoint);
  if (type_of(twin) == fs::file_type::regular) remove_file(twin);
}

void remove_with_twin(const std::string& checkpoint) {
  remove_twin(checkpoint);
  remove_file(checkpoint);
}

}  // namespace

std::string checkpoint_path(const std::string& out, int64_t step) {
  return (fs::path(out) / "checkpoints" / step_name(step)).string();
}

std::string best_path(const std::string& out) { return (fs::path(out) / "best.h5").string(); }

std::string twin_path(const std::string& checkpoint) {
  return fs::path(checkpoint).replace_extension(".safetensors").string();
}

int64_t step_of_name(std::string_view name) {
  constexpr std::string_view kBegin = "step-", kEnd = ".h5";
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd)) return -1;
  int64_t step = -1;
  std::from_chars(name.data() + kBegin.size(), name.data() + name.size(), step);
  return step >= 0 && step_name(step) == name ? step : -1;
}

std::vector<SavedStep> checkpoints_of(const std::string& out) {
  std::vector<SavedStep> list;
  const std::string folder = (fs::path(out) / "checkpoints").string();
  if (!is_folder(folder)) return list;
  std::error_code failed;
  for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
    const int64_t step = step_of_name(at->path().filename().string());
    if (step >= 0 && type_of(at->path().string()) == fs::file_type::regular)
      list.push_back({step, at->path().string()});
  }
  require(!failed, folder, ": cannot be listed: ", failed.message());
  std::sort(list.begin(), list.end(),
            [](const SavedStep& a, const SavedStep& b) { return a.step < b.step; });
  return list;
}

bool has_best(const std::string& out) { return type_of(best_path(out)) == fs::file_type::regular; }

std::string run_of(const std::string& checkpoint) {
  std::error_code failed;
  const fs::path file = fs::weakly_canonical(checkpoint, failed);  // not that of a link to it
  const fs::path folder = (failed ? fs::path(checkpoint) : file).parent_path();
  return (folder.filename() == "checkpoints" ? folder.parent_path() : folder).string();
}

std::string find_checkpoint(const std::string& path) {
  if (!is_folder(path)) return path;
  const std::string best = best_path(path);
  const fs::file_type type = type_of(best);
  if (type == fs::file_type::regular) return best;
  require(type == fs::file_type::not_found, best,
          ": is no regular file, so no run made it; name the checkpoint itself");
  const auto list = checkpoints_of(path);
  require(!list.empty(), path, ": holds no checkpoint; expected best.h5 or checkpoints/",
          step_name(1000));
  return list.back().path;
}

void prune_checkpoints(const std::string& out, int64_t keep, int64_t spare) {
  const auto list = checkpoints_of(out);
  for (size_t i = 0; i + static_cast<size_t>(keep) < list.size(); ++i)
    if (list[i].step != spare) remove_with_twin(list[i].path);
}

void remove_checkpoints(const std::string& out, int64_t after, bool with_best) {
  std::optional<SavedStep> last;
  for (const SavedStep& saved : checkpoints_of(out)) {
    if (saved.step <= after) continue;
    if (last) remove_with_twin(last->path);
    last = saved;
  }
  if (last) remove_twin(last->path);
  if (with_best && has_best(out)) remove_with_twin(best_path(out));
  if (last) remove_file(last->path);
}

void require_own(const std::string& path) {
  const fs::file_type type = type_of(path);
  require(type == fs::file_type::regular || type == fs::file_type::not_found, path,
          ": is no regular file, so no run made it, and it is not replaced; move it away");
}

void renew_best(const std::string& out, const std::string& checkpoint) {
  require_own(best_path(out));
  remove_twin(best_path(out));
  share_file(checkpoint, best_path(out));
}

}  // namespace weft::train
