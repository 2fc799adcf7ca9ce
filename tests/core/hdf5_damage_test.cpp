// Files that changed after they were written, and writes and reads that fail without a word.
#include <malloc.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/child.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "tests/train/program.h"

using namespace weft;
using weft::tests::Folder;

namespace {

// How many more calls succeed before one does not; negative: none is touched.
std::atomic<int> writes_left{-1}, reads_left{-1};

bool is_the_one(std::atomic<int>& left) { return left >= 0 && left-- == 0; }

}  // namespace

// HDF5 and we read and write files by these two, here first.
extern "C" ssize_t pwrite(int fd, const void* data, size_t bytes, off_t at) {
  if (is_the_one(writes_left)) return static_cast<ssize_t>(bytes);  // lost, and nobody says so
  return ::syscall(SYS_pwrite64, fd, data, bytes, at);
}
extern "C" ssize_t pread(int fd, void* data, size_t bytes, off_t at) {
  if (is_the_one(reads_left)) {
    errno = EIO;
    return -1;
  }
  return ::syscall(SYS_pread64, fd, data, bytes, at);
}

namespace {

const std::string kRecipe = [] {
  std::string text;
  for (int i = 0; i < 400; ++i) text += concat("# line ", i, " of a long recipe\n");
  return text + "window = 16\n";
}();

// Enough names for HDF5's dense lists, a text too long for its checksums, rows, no rows, a scalar.
void save(const std::string& path, double scale = 1) {
  Hdf5Writer out(path);
  for (int i = 0; i < 12; ++i) {
    std::vector<float> values(30, static_cast<float>(scale * i));
    out.tensor(concat("parameters/layers/", i), Dtype::f32, {5, 6}, values.data());
    out.attribute("data", concat("key", i), int64_t{i});
  }
  out.tensor("scalar", Dtype::f64, {}, &scale);
  out.begin_rows("rows", Dtype::u8, {});
  out.append_rows("rows", kRecipe.data(), 3000);
  out.begin_rows("none", Dtype::i32, {3});
  for (int i = 0; i < 9; ++i) out.attribute("", concat("number", i), 0.5 * i);
  out.attribute("", "recipe", kRecipe);
  out.attribute("", "names", std::vector<std::string>{"a", "", "long name"});
  out.attribute("", "nothing", std::vector<double>{});
  out.attribute("", "nan", std::numeric_limits<double>::quiet_NaN());
  out.commit();
}

// Everything in a file, as a number. Allocates no tensor.
uint64_t content(const std::string& path) {
  const Hdf5Reader in(path, "checkpoint");
  Hash64 all;
  for (const TensorInfo& info : in.tensors()) {
    const uint64_t hash = in.hash(info.name);
    all.update(concat(info.name, info.shape, info.dtype, hash));
  }
  for (const char* object : {"", "data"})
    for (const auto& [key, value] : in.attributes(object)) {
      all.update(key + concat(value.index()));
      if (const auto* i = std::get_if<int64_t>(&value)) all.update(concat(*i));
      if (const auto* text = std::get_if<std::string>(&value)) all.update(*text);
    }
  return all.digest();
}

// "" if f refuses with an Error that names `path`, or returns `expected`; else what it did instead.
std::string right_or_refused(const std::function<uint64_t()>& f, uint64_t expected,
                             const std::string& path) {
  try {
    return f() == expected ? "" : "another value";
  } catch (const Error& error) {
    const std::string said = error.what();
    return said.find(path) != std::string::npos ? "" : "does not name the file: " + said;
  }
}

// What is wrong with the ways to change a file, in a child, so that a crash is a finding too.
void check_changes(const std::string& name, const std::string& whole, size_t changes,
                   const std::function<std::string(size_t)>& changed, uint64_t expected) {
  constexpr size_t kAtOnce = 40;
  for (size_t first = 0; first < changes; first += kAtOnce) {
    const Folder folder;
    const std::string path = folder / "bad.h5";
    const auto work = [&] {
      ::mallopt(M_PERTURB, 165);  // memory that was never filled is not zero by luck
      for (size_t i = first; i < std::min(changes, first + kAtOnce); ++i) {
        const std::string bytes = changed(i);
        if (bytes == whole) continue;
        folder.write("bad.h5", bytes);
        const std::string wrong = right_or_refused([&] { return content(path); }, expected, path);
        require(wrong.empty(), "change ", i, ": ", wrong);
      }
    };
    const ChildResult result = in_child(work, 300);
    INFO(name << ", changes " << first << " and on: " << result.message);
    CHECK(result.ok());
  }
}

std::string flipped(std::string bytes, size_t at, int bit) {
  bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
  return bytes;
}

// Bits here and there, more of them at the start, where the structures are.
void check_flips(const std::string& whole, size_t flips, uint64_t expected) {
  check_changes(
      "flipped", whole, flips,
      [&](size_t i) {
        const size_t at = i < flips / 3 ? i * 5 : i * 7919;
        return flipped(whole, at % whole.size(), static_cast<int>(i % 8));
      },
      expected);
}

void check_mutilations(const std::string& whole, uint64_t expected) {
  const size_t page = 2048, pages = whole.size() / page, step = whole.size() / 31 + 1;
  check_changes(
      "cut", whole, 32, [&](size_t i) { return whole.substr(0, i * step); }, expected);
  check_changes(
      "cut at the end", whole, 70, [&](size_t i) { return whole.substr(0, whole.size() - i); },
      expected);
  check_changes(
      "zeroed", whole, pages,
      [&](size_t i) { return std::string(whole).replace(i * page, page, page, '\0'); }, expected);
  check_changes(
      "swapped", whole, pages,
      [&](size_t i) {
        std::string bytes = whole;
        const size_t other = (i * 7 + 3) % pages;
        bytes.replace(i * page, page, whole, other * page, page);
        return bytes.replace(other * page, page, whole, i * page, page);
      },
      expected);
  check_changes(
      "longer", whole, 20, [&](size_t i) { return whole + std::string(i * 37, '\0'); }, expected);
}

}  // namespace

TEST_CASE("hdf5: every changed file is refused, or reads as it did, and none is a crash") {
  const Folder folder;
  save(folder / "a.h5");
  const std::string whole = folder.read("a.h5");
  const uint64_t expected = content(folder / "a.h5");
  check_flips(whole, 240, expected);
  check_mutilations(whole, expected);
}

TEST_CASE("hdf5: a changed file of an earlier version is refused, or reads as it did") {
  // By the program before there were seals: 2 steps of a model of width 8.
  const std::string path = tests::source_path("tests/train/earlier.h5");
  const std::string whole = read_file(path);
  const uint64_t expected = content(path);
  check_flips(whole, 240, expected);
  check_mutilations(whole, expected);
}

TEST_CASE("hdf5: a flipped bit in a text that HDF5 has no checksum for is found") {
  const Folder folder;
  save(folder / "a.h5");
  std::string bad = folder.read("a.h5");
  const size_t at = bad.find("window = 16");
  REQUIRE(at != std::string::npos);
  bad[at + 10] = '7';
  folder.write("a.h5", bad);
  CHECK_THROWS_WITH(
      Hdf5Reader(folder / "a.h5", "checkpoint"),
      ContainsSubstring("its bytes do not match its seal; use an earlier checkpoint"));
}

TEST_CASE("hdf5: a file without the seal that it had is refused") {
  const Folder folder;
  save(folder / "a.h5");
  const std::string whole = folder.read("a.h5");
  folder.write("a.h5", whole.substr(0, whole.size() - 64));
  CHECK_THROWS_WITH(Hdf5Reader(folder / "a.h5"), ContainsSubstring("its seal"));
}

TEST_CASE("hdf5: a write that is lost is found before the older file is replaced") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  save(path, 2);
  const uint64_t older = content(path), newer = [&] {
    save(folder / "b.h5", 3);
    return content(folder / "b.h5");
  }();
  int found = 0, lost = 0;
  for (bool any = true; any; ++lost) {
    save(path, 2);
    bool told = false;
    writes_left = lost;
    try {
      save(path, 3);
    } catch (const Error& error) {
      told = true;
      CHECK_THAT(error.what(), ContainsSubstring(path));
    }
    any = writes_left < 0;
    writes_left = -1;
    found += told;
    INFO("write " << lost);
    REQUIRE(content(path) == (told ? older : newer));
  }
  CHECK(found > 10);
}

TEST_CASE("hdf5: a read that fails while a save is read back refuses the save and no more") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  save(path, 2);
  const uint64_t older = content(path);
  int refused = 0;
  for (int n = 0; n < 60; ++n) {
    reads_left = n;  // counted here and, from there on, in the child that reads back
    bool told = false;
    try {
      save(path, 3);
    } catch (const Error& error) {
      told = true;
      CHECK_THAT(error.what(), ContainsSubstring("a.h5"));
    }
    reads_left = -1;
    refused += told;
    INFO("read " << n);
    REQUIRE((content(path) == older) == told);
    if (!told) save(path, 2);
  }
  CHECK(refused > 10);
}

TEST_CASE("hdf5: a read that fails is refused or does not matter, and never a crash") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  save(path);
  const std::string earlier = tests::source_path("tests/train/earlier.h5");
  for (const std::string& file : {path, earlier}) {
    const uint64_t expected = content(file);
    const ChildResult result = in_child(
        [&] {
          ::mallopt(M_PERTURB, 165);
          for (int n = 0; n < 150; ++n) {
            reads_left = n;
            const std::string wrong =
                right_or_refused([&] { return content(file); }, expected, file);
            reads_left = -1;
            require(wrong.empty(), "read ", n, ": ", wrong);
          }
        },
        300);
    INFO(file << ": " << result.message);
    CHECK(result.ok());
  }
}

TEST_CASE("hdf5: what is damaged is not absent") {
  // The header of one tensor, group or list at a time, in a file without a seal.
  const std::string whole = read_file(tests::source_path("tests/train/earlier.h5"));
  const Folder folder;
  int refused = 0;
  for (size_t at = whole.find("OHDR"); at != std::string::npos; at = whole.find("OHDR", at + 4)) {
    folder.write("bad.h5", flipped(whole, at + 12, 3));
    CHECK_THROWS_WITH(Hdf5Reader(folder / "bad.h5", "checkpoint"),
                      ContainsSubstring("is damaged: "));
    ++refused;
  }
  CHECK(refused > 10);
}

TEST_CASE("hdf5: each group is listed once, however often it is linked") {
  const Hdf5Reader in(tests::source_path("tests/core/links.h5"));  // made by links.py
  std::vector<std::string> names;
  for (const TensorInfo& info : in.tensors()) names.push_back(info.name.substr(0, 12));
  CHECK(names == std::vector<std::string>{"doubled/left", "loop/y", "same", "x"});
  CHECK(in.tensors("loop").size() == 4);
  CHECK(in.has_tensor("loop/again/again/twice/x"));
  CHECK(!in.has_tensor("x/y"));
  CHECK(!in.has_tensor("loop/none/y"));
  CHECK_THROWS_WITH(in.has_tensor("nowhere"), ContainsSubstring("is a link to nothing"));
  CHECK_THROWS_WITH(in.has_tensor("elsewhere"), ContainsSubstring("is a link to nothing"));
}
