#include "train/run_folder.h"

#include <cerrno>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "tests/catch.h"
#include "tests/system_calls.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
namespace fs = std::filesystem;

namespace {

constexpr const char* kOthers[] = {
    "step-good.h5",
    "step-0000000010 (copy).h5",
    "step-+000000010.h5",
    "step--000000010.h5",
    "step-10.h5",
    "step-00000000010.h5",
    "step-000000010.h5",
    "step- 000000010.h5",
    "step-0x00000010.h5",
    "step-0000000010.H5",
    "step-0000000010.h5~",
    "step-0000000010.h5.bak",
    "step-0000000010.h5.new",
    "step-0000000010a.h5",
    ".step-0000000010.h5",
    "Step-0000000010.h5",
    "step-99999999999999999999.h5",
    "step-9223372036854775808.h5",
    "step-.h5",
    "step-0000000010",
    "zzz.h5",
};

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// A run's folder of checkpoints of these steps, and best.h5 of the last.
void make_run(const Folder& f, const std::vector<int64_t>& steps) {
  fs::create_directories(f / "run/checkpoints");
  for (const int64_t step : steps)
    write_file(checkpoint_path(f / "run", step), concat("step ", step));
  share_file(checkpoint_path(f / "run", steps.back()), best_path(f / "run"));
}

std::vector<int64_t> steps_of(const Folder& f) {
  std::vector<int64_t> steps;
  for (const SavedStep& saved : checkpoints_of(f / "run")) steps.push_back(saved.step);
  return steps;
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.insert(entry.path().filename().string());
  return names;
}

}  // namespace

TEST_CASE("run folder: a checkpoint's name is the one that is written for its step, and no other") {
  for (const int64_t step : {int64_t{0}, int64_t{7}, int64_t{9999999999}, int64_t{10000000000},
                             int64_t{9223372036854775807}})
    CHECK(step_of_name(fs::path(checkpoint_path("run", step)).filename().string()) == step);
  for (const char* name : kOthers) {
    INFO(name);
    CHECK(step_of_name(name) == -1);
  }
}

TEST_CASE("run folder: only regular files of our names are read, pruned and removed") {
  const Folder f;
  make_run(f, {2, 4, 6, 8});
  for (const char* name : kOthers) f.write(concat("run/checkpoints/", name), "a user's");
  fs::create_directory(f / "run/checkpoints/step-0000000100.h5");
  fs::create_symlink("step-0000000002.h5", f / "run/checkpoints/step-0000000200.h5");
  fs::create_symlink("nowhere", f / "run/checkpoints/step-0000000300.h5");
  f.write("run/notes.txt", "a user's");
  const size_t others = std::size(kOthers) + 3;
  CHECK(steps_of(f) == std::vector<int64_t>{2, 4, 6, 8});
  prune_checkpoints(f / "run", 2);
  CHECK(steps_of(f) == std::vector<int64_t>{6, 8});
  CHECK(names_in(f / "run/checkpoints").size() == others + 2);
  fs::remove(f / "run/best.h5");
  CHECK(find_checkpoint(f / "run") == checkpoint_path(f / "run", 8));
  remove_checkpoints(f / "run", -1, true);
  CHECK(names_in(f / "run/checkpoints").size() == others);
  CHECK(f.read("run/notes.txt") == "a user's");
  CHECK(refusal([&] { find_checkpoint(f / "run"); }).find("holds no checkpoint") !=
        std::string::npos);
}

TEST_CASE("run folder: steps of more than ten digits are later than shorter ones") {
  const Folder f;
  make_run(f, {9999999998, 9999999999, 10000000000, 10000000001});
  CHECK(steps_of(f) == std::vector<int64_t>{9999999998, 9999999999, 10000000000, 10000000001});
  prune_checkpoints(f / "run", 2);
  CHECK(steps_of(f) == std::vector<int64_t>{10000000000, 10000000001});
  remove_checkpoints(f / "run", 10000000000, false);
  CHECK(steps_of(f) == std::vector<int64_t>{10000000000});
}

TEST_CASE("run folder: twins go with their checkpoints, and those of others stay") {
  const Folder f;
  make_run(f, {2, 4, 6, 8});
  const auto twin = [&](int64_t step) { return twin_path(checkpoint_path(f / "run", step)); };
  CHECK(fs::path(twin(4)).filename() == "step-0000000004.safetensors");
  CHECK(twin_path(best_path(f / "run")) == f / "run/best.safetensors");
  for (const int64_t step : {2, 3, 4, 6, 8}) write_file(twin(step), "a twin");
  fs::remove(twin(4));
  fs::create_symlink("step-0000000006.safetensors", twin(4));
  write_file(f / "run/best.safetensors", "a twin");
  write_file(f / "run/checkpoints/other.safetensors", "a user's");
  prune_checkpoints(f / "run", 2);
  CHECK(steps_of(f) == std::vector<int64_t>{6, 8});
  CHECK_FALSE(fs::exists(twin(2)));
  CHECK(fs::exists(twin(3)));  // of no checkpoint that the run has
  CHECK(fs::is_symlink(twin(4)));
  CHECK((fs::exists(twin(6)) && fs::exists(twin(8))));
  renew_best(f / "run", checkpoint_path(f / "run", 6));
  CHECK_FALSE(fs::exists(f / "run/best.safetensors"));
  write_file(f / "run/best.safetensors", "a twin");
  remove_checkpoints(f / "run", -1, true);
  CHECK(names_in(f / "run/checkpoints") == std::set<std::string>{"step-0000000003.safetensors",
                                                                 "step-0000000004.safetensors",
                                                                 "other.safetensors"});
  CHECK_FALSE(fs::exists(f / "run/best.safetensors"));
}

TEST_CASE("run folder: no kill leaves a twin without its checkpoint") {
  int points = 0;
  for (int nth = 0;; ++nth) {
    const Folder f;
    make_run(f, {2, 4, 6});
    for (const int64_t step : {2, 4, 6})
      write_file(twin_path(checkpoint_path(f / "run", step)), "a twin");
    write_file(f / "run/best.safetensors", "a twin");
    const bool killed = killed_before(
        [&] {
          prune_checkpoints(f / "run", 2);
          remove_checkpoints(f / "run", -1, true);
        },
        nth);
    for (const std::string& name : names_in(f / "run/checkpoints")) {
      INFO(nth << " " << name);
      CHECK((fs::path(name).extension() == ".h5" ||
             step_of_name(fs::path(name).replace_extension(".h5").string()) >= 0));
      if (fs::path(name).extension() != ".h5")
        CHECK(fs::exists(f / ("run/checkpoints/" + fs::path(name).stem().string() + ".h5")));
    }
    if (fs::exists(f / "run/best.safetensors")) CHECK(fs::exists(f / "run/best.h5"));
    if (!killed) break;
    ++points;
  }
  CHECK(points == 8);
}

TEST_CASE("run folder: pruning keeps the best step that has no best.h5 yet") {
  const Folder f;
  make_run(f, {2, 4, 6, 8});
  prune_checkpoints(f / "run", 1, /*spare=*/4);
  CHECK(steps_of(f) == std::vector<int64_t>{4, 8});
  prune_checkpoints(f / "run", 1);
  CHECK(steps_of(f) == std::vector<int64_t>{8});
}

TEST_CASE(
    "run folder: a removal killed at any call leaves the newest with best.h5, or no best.h5") {
  int points = 0;
  for (bool going_on = true; going_on; ++points) {
    const Folder f;
    make_run(f, {2, 4, 6});
    going_on = killed_before([&] { remove_checkpoints(f / "run", -1, true); }, points);
    const auto left = steps_of(f);
    INFO("killed before call " << points << ", " << left.size() << " left");
    if (has_best(f / "run")) {
      REQUIRE_FALSE(left.empty());
      CHECK(left.back() == 6);
    }
    if (!going_on) CHECK((left.empty() && !has_best(f / "run")));
    // Once more ends it.
    remove_checkpoints(f / "run", -1, true);
    CHECK((steps_of(f).empty() && !has_best(f / "run")));
  }
  CHECK(points == 5);  // three checkpoints, best.h5, and the end
}

TEST_CASE("run folder: best.h5 is renewed whole or not at all, whenever it is killed") {
  for (const bool links : {true, false}) {
    int points = 0;
    for (bool going_on = true; going_on && points < 20; ++points) {
      const Folder f;
      make_run(f, {2, 4});
      write_file(checkpoint_path(f / "run", 4), "newer");
      going_on = killed_before(
          [&] {
            if (!links && !(refuse_call(SYS_linkat, EPERM)
#ifdef SYS_link
                            && refuse_call(SYS_link, EPERM)
#endif
                                ))
              ::_exit(3);
            renew_best(f / "run", checkpoint_path(f / "run", 4));
          },
          points);
      const std::string best = f.read("run/best.h5");
      INFO("killed before call " << points << (links ? "" : ", without links"));
      CHECK((going_on ? best == "step 4" || best == "newer" : best == "newer"));
      remove_abandoned_files(f / "run", /*alone=*/true);
      CHECK(names_in(f / "run") == std::set<std::string>{"best.h5", "checkpoints"});
    }
    CHECK(points >= 2);
  }
}

TEST_CASE("run folder: renewing best.h5 that is already the same file leaves nothing beside it") {
  const Folder f;
  make_run(f, {2});
  renew_best(f / "run", checkpoint_path(f / "run", 2));
  CHECK(names_in(f / "run") == std::set<std::string>{"best.h5", "checkpoints"});
  CHECK(fs::hard_link_count(f / "run/best.h5") == 2);
}

TEST_CASE("run folder: a best.h5 that no run made is neither replaced, removed nor read") {
  const Folder f;
  make_run(f, {2});
  fs::remove(f / "run/best.h5");
  f.write("mine.h5", "a user's");
  fs::create_symlink(f / "mine.h5", f / "run/best.h5");
  CHECK_THAT(refusal([&] { renew_best(f / "run", checkpoint_path(f / "run", 2)); }),
             ContainsSubstring("best.h5"));
  CHECK_THAT(refusal([&] { find_checkpoint(f / "run"); }), ContainsSubstring("best.h5"));
  remove_checkpoints(f / "run", -1, true);
  CHECK(fs::is_symlink(f / "run/best.h5"));
  CHECK(f.read("mine.h5") == "a user's");
  fs::remove(f / "run/best.h5");
  fs::create_directory(f / "run/best.h5");
  CHECK_FALSE(has_best(f / "run"));
  CHECK(names_in(f / "run") == std::set<std::string>{"best.h5", "checkpoints"});
}

TEST_CASE("run folder: a folder that cannot be looked into is told, with its name and the reason") {
  const Folder f;
  fs::create_directory(f / "run");
  fs::create_symlink("checkpoints", f / "run/checkpoints");
  const std::string said = refusal([&] { checkpoints_of(f / "run"); });
  CHECK_THAT(said, ContainsSubstring("run/checkpoints"));
  CHECK_THAT(said, ContainsSubstring("Too many levels of symbolic links"));
  const std::string longer(300, 'a');
  CHECK_THAT(refusal([&] { find_checkpoint(f / longer); }),
             ContainsSubstring("File name too long"));
  CHECK(checkpoints_of(f / "nowhere").empty());
  fs::create_directories(f / "closed/checkpoints");
  CHECK(in_child([&] {
          if (!refuse_call(SYS_getdents64, EACCES)) return 0;
          const std::string why = refusal([&] { checkpoints_of(f / "closed"); });
          return why.find("cannot be listed: Permission denied") == std::string::npos ? 1 : 0;
        }) == 0);
}
