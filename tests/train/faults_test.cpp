// Calls of the system that fail, and power that is lost, through a library in front of the calls
// (tests/shim/shim.cpp).
#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "core/hdf5.h"
#include "core/system.h"
#include "tests/catch.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;

namespace fs = std::filesystem;

namespace {

std::string failing(const std::string& call, int nth, int code, const std::string& text) {
  return concat("SHIM_FAIL=", call, ":", nth, ":", code, ":", text, " LD_PRELOAD=$SHIM $WEFT ");
}

struct Fault {
  const char* call;
  int code;
};

// Each fault at every place where it can strike, until the program no longer meets it. `broken` is
// told of those that struck. Returns how many did.
template <class F>
int for_each_strike(const Folder& f, const Fault& fault, const std::string& text,
                    const std::string& arguments, const F& broken) {
  int strikes = 0;
  for (int nth = 1; nth < 60; ++nth) {
    f.write("out.h5", "an older file");
    const Ran ran = run_shell(f, failing(fault.call, nth, fault.code, text) + arguments);
    INFO(fault.call << " " << nth << ", " << reason_of(fault.code) << "\n" << ran.text);
    if (ran.status == 0 && nth > 3) break;
    if (ran.status == 0) continue;
    ++strikes;
    broken(ran);
  }
  return strikes;
}

// --- A file system that forgets what was not flushed ---------------------------------------------

struct Names {
  std::map<std::string, int> files;  // path -> file
  std::set<std::string> folders;
};

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// What the program did, call by call.
class Disk {
 public:
  explicit Disk(const Folder& record) : record_(record) {}

  void apply(const std::string& line) {
    std::istringstream words(line);
    std::string what, a, b;
    words >> what >> a >> b;
    if (what == "folder") now_.folders.insert(a);
    if (what == "make") now_.files[a] = files_++;
    if (what == "flush" && now_.files.count(a)) bytes_[now_.files[a]] = record_.read(b);
    if (what == "names") flush_names(a);
    if (what == "link") now_.files[b] = now_.files.at(a);
    if (what == "unlink") now_.files.erase(a), now_.folders.erase(a);
    if (what == "rename" && now_.files.count(a) &&
        !(now_.files.count(b) && now_.files[a] == now_.files[b])) {
      now_.files[b] = now_.files[a];
      now_.files.erase(a);
    }
  }

  // What may be found after a cut: names that were flushed; of the later ones, those that came to
  // be where `made`, without those that went where `gone`; bytes as they were flushed.
  std::map<std::string, std::string> after_cut(bool made, bool gone) const {
    Names found = kept_;
    if (made) {
      found.folders.insert(now_.folders.begin(), now_.folders.end());
      for (const auto& [path, file] : now_.files) found.files[path] = file;
    }
    std::map<std::string, std::string> files;
    for (const auto& [path, file] : found.files) {
      if (gone && !now_.files.count(path)) continue;
      if (!reached(found, folder_of(path))) continue;
      const auto bytes = bytes_.find(file);
      files[path] = bytes == bytes_.end() ? "" : bytes->second;
    }
    return files;
  }

 private:
  static bool reached(const Names& names, const std::string& folder) {
    return folder == "." || (names.folders.count(folder) && reached(names, folder_of(folder)));
  }

  void flush_names(const std::string& folder) {
    const auto inside = [&](const std::string& path) { return folder_of(path) == folder; };
    std::erase_if(kept_.files, [&](const auto& entry) { return inside(entry.first); });
    std::erase_if(kept_.folders, inside);
    for (const auto& entry : now_.files)
      if (inside(entry.first)) kept_.files.insert(entry);
    for (const std::string& path : now_.folders)
      if (inside(path)) kept_.folders.insert(path);
  }

  const Folder& record_;
  Names now_, kept_;
  std::map<int, std::string> bytes_;  // of a file, as they were flushed last
  int files_ = 0;
};

void materialize(const fs::path& to, const std::map<std::string, std::string>& files) {
  fs::remove_all(to);
  fs::create_directories(to);
  for (const auto& [path, bytes] : files) {
    fs::create_directories((to / path).parent_path());
    std::ofstream(to / path, std::ios::binary) << bytes;
  }
}

// The newest checkpoint of a run's folder, "" where there is none.
std::string newest_checkpoint(const fs::path& run) {
  std::string newest;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", absent))
    if (entry.path().extension() == ".h5") newest = std::max(newest, entry.path().string());
  return newest;
}

// The last step of which a line tells, as in "step 2/3 | ..."; a line comes after the save before
// it.
int64_t last_told(const std::string& text) {
  int64_t step = 0;
  for (size_t at = 0; (at = text.find("step ", at)) != std::string::npos; ++at)
    if (const size_t slash = text.find('/', at); slash < text.find(' ', at + 5))
      step = std::max<int64_t>(step, std::atoll(text.c_str() + at + 5));
  return step;
}

}  // namespace

TEST_CASE("faults: a call that fails while a file is written is told with its own reason") {
  if (!shim_works()) SKIP("a program with sanitizers takes no library in front of it");
  const Folder f;
  {
    Hdf5Writer file(f / "in.h5");
    const std::vector<float> values(2 * 5 * 8, 0.25f);
    for (const char* name : {"q", "k", "v"})
      file.tensor(name, Dtype::f32, {1, 5, 2, 8}, values.data());
    file.commit();
  }
  for (const Fault& fault : std::vector<Fault>{{"open", EMFILE},
                                               {"pwrite", EIO},
                                               {"pwrite", ENOSPC},
                                               {"fallocate", ENOSPC},
                                               {"fallocate", EIO},
                                               {"truncate", EIO},
                                               {"fsync", EIO},
                                               {"fsync", ENOSPC},
                                               {"close", EIO},
                                               {"rename", EACCES}}) {
    INFO(fault.call);
    const int strikes =
        for_each_strike(f, fault, "out.h5", "op attention in.h5 out.h5", [&](const Ran& ran) {
          CHECK(ran.status == 2);
          CHECK_THAT(ran.text, ContainsSubstring("out.h5"));
          CHECK_THAT(ran.text, ContainsSubstring(reason_of(fault.code)));
          CHECK(f.read("out.h5") == "an older file");
          for (const auto& entry : fs::directory_iterator(f.path()))
            CHECK(entry.path().string().find(".tmp-") == std::string::npos);
        });
    CHECK(strikes > 0);
  }
}

TEST_CASE("faults: a folder that cannot be flushed or made is told with its own reason") {
  if (!shim_works()) SKIP("a program with sanitizers takes no library in front of it");
  const Folder f;
  write_small_run(f);
  fs::create_directories(f / "sub");
  const Ran flushed =
      run_shell(f, failing("fsync", 2, EIO, "/sub") + "data text.txt --out sub/d.h5");
  INFO(flushed.text);
  CHECK(flushed.status == 2);
  CHECK_THAT(flushed.text, ContainsSubstring("sub: the folder cannot be flushed"));
  CHECK_THAT(flushed.text, ContainsSubstring(reason_of(EIO)));
  const Ran made = run_shell(f, failing("mkdir", 1, EDQUOT, "run") + "train recipe.toml");
  INFO(made.text);
  CHECK(made.status == 2);
  CHECK_THAT(made.text, ContainsSubstring(reason_of(EDQUOT)));
}

TEST_CASE("faults: a save that fails is told with its own reason, and the run goes on") {
  if (!shim_works()) SKIP("a program with sanitizers takes no library in front of it");
  for (const Fault& fault : std::vector<Fault>{
           {"open", ENFILE}, {"pwrite", EIO}, {"fsync", EDQUOT}, {"rename", EROFS}}) {
    const Folder f;
    write_small_run(f);
    const Ran ran =
        run_shell(f, failing(fault.call, 1, fault.code, "step-0000000002") + "train recipe.toml");
    INFO(fault.call << "\n" << ran.text);
    CHECK(ran.status == 0);  // the last save went well
    CHECK_THAT(ran.text, ContainsSubstring("checkpoint not saved"));
    CHECK_THAT(ran.text, ContainsSubstring(reason_of(fault.code)));
    CHECK(fs::exists(f / "run/checkpoints/step-0000000003.h5"));
    CHECK_THAT(ran.text, ContainsSubstring("Last good one: run/checkpoints/step-0000000001.h5"));
  }
}

TEST_CASE("faults: after a loss of power at any moment, no save that was told is lost") {
  if (!shim_works()) SKIP("a program with sanitizers takes no library in front of it");
  const Folder f, record;
  write_small_run(f);
  fs::create_directories(f / "disk");
  const std::string recorded = concat("SHIM_RECORD=", record.path(), " SHIM_WATCH=", f / "disk",
                                      " LD_PRELOAD=$SHIM $WEFT train recipe.toml ",
                                      "--set train.keep=1 --set train.out=disk/runs/a >said.txt");
  const Ran ran = run_shell(f, recorded);
  INFO(ran.text);
  REQUIRE(ran.status == 0);

  std::istringstream log(record.read("log"));
  Disk disk(record);
  const std::string said = f.read("said.txt");
  std::string told;
  std::map<std::map<std::string, std::string>, int64_t> seen;  // what is found -> its newest step
  const auto newest_of = [&](const std::map<std::string, std::string>& files) -> int64_t {
    materialize(f / "cut", files);
    const std::string newest = newest_checkpoint(f / "cut/runs/a");
    if (newest.empty()) return 0;
    CHECK_NOTHROW(Hdf5Reader(newest).verify());
    const int64_t step = Hdf5Reader(newest).integer("", "step");
    const fs::path best = f / "cut/runs/a/best.h5";
    if (fs::exists(best)) CHECK_NOTHROW(Hdf5Reader(best.string()).verify());
    const Ran next = run_shell(f,
                               "$WEFT train recipe.toml --resume --set train.steps=4 "
                               "--set train.out=cut/runs/a");
    INFO(next.text);
    CHECK(next.status == 0);
    CHECK_THAT(next.text, ContainsSubstring("step 4/4"));
    return step;
  };
  const auto check_cut = [&](bool made, bool gone, int64_t least) {
    const auto files = disk.after_cut(made, gone);
    INFO("at least step " << least << (made ? ", made" : "") << (gone ? ", gone" : ""));
    auto found = seen.find(files);
    if (found == seen.end()) found = seen.emplace(files, newest_of(files)).first;
    CHECK(found->second >= least);
  };
  for (std::string line; std::getline(log, line);) {
    INFO("after: " << line);
    if (line.rfind("told ", 0) == 0) told = said.substr(0, std::stoul(line.substr(5)));
    disk.apply(line);
    for (const bool made : {false, true})
      for (const bool gone : {false, true})
        check_cut(made, gone, std::max<int64_t>(0, last_told(told) - 1));
  }
  check_cut(false, false, 3);  // the program ended well: its last save was told
  CHECK(seen.size() > 10);
  CHECK(std::count_if(seen.begin(), seen.end(), [](auto& one) { return one.second > 0; }) > 5);
}
