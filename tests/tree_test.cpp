// Reads the sources and fails on whatever of the house's rules (CONTRIBUTING.md) a program can see:
// who includes whom, what a mechanism's folder holds, how long files are, which words are ours.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/catch.h"
#include "tests/paths.h"

namespace {

namespace fs = std::filesystem;

struct File {
  std::string path;  // from the root, as in "core/tensor.h"
  std::vector<std::string> lines;
};

struct Include {
  std::string where;   // "core/tensor.h:12"
  std::string header;  // as written, without the brackets
  bool ours = false;   // in quotes
};

const fs::path kRoot = weft::tests::source_path();
const std::set<std::string> kFolders = {"core",  "kernels", "autograd", "layers",  "data",
                                        "train", "library", "examples", "recipes", "tests"};
constexpr std::size_t kMostLines = 600;

// The floors of kernels/, each with its rooms; a mechanism, the top, is any other folder.
const std::vector<std::set<std::string>> kFloors = {
    {"contract"},
    {"tile"},
    {"tokens"},
    {"rows"},
    {"lookup"},
    {"products", "experts", "sequence", "features", "optimizer", "generation", "softmax",
     "selection", "delta_rule"}};
const std::size_t kMechanisms = kFloors.size();

std::size_t floor_of(const std::string& room) {
  for (std::size_t i = 0; i < kFloors.size(); ++i)
    if (kFloors[i].count(room) > 0) return i;
  return kMechanisms;
}

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

// "kernels/attention/cpu.cpp" -> {"kernels", "attention", "cpu.cpp"}
std::vector<std::string> parts(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& name : fs::path(path)) names.push_back(name.string());
  return names;
}

bool is_code(const std::string& path) {
  static const std::set<std::string> endings = {".h", ".cpp", ".cu", ".cuh"};
  return endings.count(fs::path(path).extension().string()) > 0;
}

bool is_text(const std::string& path) {
  static const std::set<std::string> endings = {".md", ".toml", ".py", ".sh", ".txt", ".json"};
  return is_code(path) || endings.count(fs::path(path).extension().string()) > 0;
}

File read(const fs::path& path) {
  File file{path.lexically_relative(kRoot).generic_string(), {}};
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) file.lines.push_back(line);
  return file;
}

// Every text of the project. Big data files that tests keep are not text in this sense.
const std::vector<File>& files() {
  static const std::vector<File> all = [] {
    std::vector<File> found;
    for (const auto& folder : kFolders) {
      if (!fs::is_directory(kRoot / folder)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder))
        if (entry.is_regular_file() && is_text(entry.path().string()))
          found.push_back(read(entry.path()));
    }
    for (const char* name : {"weft", "CMakeLists.txt", "CMakePresets.json", "README.md",
                             "CONTRIBUTING.md", ".ci/run", ".clang-format"})
      if (fs::exists(kRoot / name)) found.push_back(read(kRoot / name));
    return found;
  }();
  return all;
}

std::vector<Include> includes(const File& file) {
  static const std::regex line(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
  std::vector<Include> found;
  std::smatch match;
  for (std::size_t i = 0; i < file.lines.size(); ++i)
    if (std::regex_search(file.lines[i], match, line))
      found.push_back({file.path + ":" + std::to_string(i + 1), match[2], match[1] == "\""});
  return found;
}

// A line without its comment and without what its strings hold.
std::string without_words(const std::string& line) {
  static const std::regex string_or_comment(R"re("(\\.|[^"\\])*"|//.*)re");
  return std::regex_replace(line, string_or_comment, "");
}

// The types that a file defines in a namespace with a name, as "weft::kernels::Field".
std::vector<std::string> types_of(const File& file) {
  static const std::regex space(R"re(\bnamespace\s*([\w:]*)\s*$)re");
  static const std::regex type(
      R"re(\b(?:struct|class|enum|enum class)\s+(\w+)(?:\s+final)?(?:\s*:(?!:)[^;{}]*)?\s*$)re");
  std::vector<std::string> found, open;  // "" for a block that is no namespace
  std::string statement;
  for (const std::string& line : file.lines) {
    if (starts_with(line, "#")) continue;
    for (const char c : without_words(line) + " ") {
      if (c != '{' && c != '}' && c != ';') {
        statement += c;
        continue;
      }
      std::smatch match;
      if (c == '}' && !open.empty()) open.pop_back();
      if (c == '{') {
        const bool named =
            std::none_of(open.begin(), open.end(), [](const auto& name) { return name.empty(); });
        if (std::regex_search(statement, match, space)) {
          open.push_back(match[1].str());
        } else {
          if (named && !open.empty() && std::regex_search(statement, match, type)) {
            std::string full;
            for (const std::string& name : open) full += name + "::";
            found.push_back(full + match[1].str());
          }
          open.emplace_back();
        }
      }
      statement.clear();
    }
  }
  return found;
}

}  // namespace

TEST_CASE("tree: the sources are found") {
  CHECK(std::any_of(files().begin(), files().end(),
                    [](const File& file) { return file.path == "core/tensor.h"; }));
}

TEST_CASE("tree: a file includes its own folder and folders below it") {
  const std::map<std::string, std::set<std::string>> below = {
      {"core", {"core"}},
      {"kernels", {"kernels", "core"}},
      {"autograd", {"autograd", "kernels", "core"}},
      {"layers", {"layers", "autograd", "kernels", "core"}},
      {"data", {"data", "core"}},
      {"library", {"library", "kernels", "core"}},
      {"examples", {}},
      {"train", {"train", "data", "layers", "autograd", "kernels", "core"}},
      {"tests", {"tests", "library", "train", "data", "layers", "autograd", "kernels", "core"}}};
  for (const File& file : files()) {
    const auto allowed = below.find(parts(file.path).front());
    if (!is_code(file.path) || allowed == below.end()) continue;
    for (const Include& include : includes(file)) {
      const std::string folder = parts(include.header).front();
      if (include.ours && kFolders.count(folder) == 0)
        FAIL_CHECK(include.where << " includes \"" << include.header
                                 << "\"; write our headers from the root");
      if (kFolders.count(folder) > 0 && allowed->second.count(folder) == 0)
        FAIL_CHECK(include.where << " includes \"" << include.header << "\", which is not below "
                                 << allowed->first << "/");
    }
  }
}

TEST_CASE("tree: a room of kernels includes rooms of lower floors alone") {
  for (const File& file : files()) {
    const auto own = parts(file.path);
    if (!is_code(file.path) || own.front() != "kernels") continue;
    if (own.size() != 3) {
      FAIL_CHECK(file.path << " stands in no room of kernels/");
      continue;
    }
    for (const Include& include : includes(file)) {
      const auto other = parts(include.header);
      if (other.front() == "kernels" && other[1] != own[1] &&
          floor_of(other[1]) >= floor_of(own[1]))
        FAIL_CHECK(include.where << " includes \"" << include.header
                                 << "\", which is not on a floor below kernels/" << own[1]);
    }
  }
}

TEST_CASE("tree: the workbench needs kernels and autograd alone") {
  for (const File& file : files()) {
    if (!starts_with(file.path, "train/workbench/")) continue;
    for (const Include& include : includes(file)) {
      const auto other = parts(include.header);
      const bool allowed = other.front() == "core" || other.front() == "kernels" ||
                           other.front() == "autograd" ||
                           (other.front() == "train" && other[1] == "workbench");
      if (include.ours && !allowed)
        FAIL_CHECK(include.where << " includes \"" << include.header << "\"");
    }
  }
}

TEST_CASE("tree: pages need core alone") {
  for (const File& file : files()) {
    if (!starts_with(file.path, "train/pages/")) continue;
    for (const Include& include : includes(file))
      if (include.ours && !starts_with(include.header, "core/") &&
          !starts_with(include.header, "train/pages/"))
        FAIL_CHECK(include.where << " includes \"" << include.header << "\"");
  }
}

TEST_CASE("tree: lessons need no run, no verb, no layer and no data") {
  for (const File& file : files()) {
    if (!starts_with(file.path, "train/lessons/")) continue;
    for (const Include& include : includes(file)) {
      const auto other = parts(include.header);
      const bool allowed =
          other.front() == "core" || other.front() == "kernels" || other.front() == "autograd" ||
          (other.front() == "train" &&
           (other[1] == "lessons" || other[1] == "pages" || other[1] == "workbench"));
      if (include.ours && !allowed)
        FAIL_CHECK(include.where << " includes \"" << include.header << "\"");
    }
  }
}

TEST_CASE("tree: formats of other programs know no verb, no page and no workbench") {
  for (const File& file : files()) {
    if (!starts_with(file.path, "train/exchange/")) continue;
    for (const Include& include : includes(file))
      if (starts_with(include.header, "train/verbs/") ||
          starts_with(include.header, "train/pages/") ||
          starts_with(include.header, "train/workbench/"))
        FAIL_CHECK(include.where << " includes \"" << include.header << "\"");
  }
}

TEST_CASE("tree: a run knows no verb, no page, no lesson and no format of other programs") {
  const auto apart = [](const std::string& path) {
    for (const char* room : {"train/verbs/", "train/pages/", "train/lessons/", "train/exchange/"})
      if (starts_with(path, room)) return true;
    return false;
  };
  for (const File& file : files()) {
    if (!starts_with(file.path, "train/") || apart(file.path)) continue;
    for (const Include& include : includes(file))
      if (apart(include.header))
        FAIL_CHECK(include.where << " includes \"" << include.header << "\"");
  }
}

TEST_CASE("tree: no room holds more than a fifth of the kernels") {
  std::map<std::string, std::size_t> lines;
  std::size_t all = 0;
  for (const File& file : files()) {
    if (!is_code(file.path) || !starts_with(file.path, "kernels/")) continue;
    lines[parts(file.path)[1]] += file.lines.size();
    all += file.lines.size();
  }
  for (const auto& [room, count] : lines) {
    INFO("kernels/" << room << ": " << count << " lines of " << all);
    CHECK(5 * count <= all);
  }
}

TEST_CASE("tree: an outside library is included by its one file") {
  struct Library {
    std::string start;             // of the header's name
    std::vector<std::string> who;  // paths, or starts of paths, that may include it
  };
  const std::vector<Library> libraries = {{"toml++/", {"core/toml.cpp"}},
                                          {"hdf5", {"core/hdf5_", "tests/judge/"}},
                                          {"H5", {"core/hdf5_"}},
                                          {"sentencepiece", {"data/tokenizer.cpp"}},
                                          {"CLI/", {"train/"}},
                                          {"nccl", {"core/ranks_nccl.cu"}},
                                          {"gloo/", {"core/ranks_gloo.cpp"}},
                                          {"catch2/", {"tests/catch.h"}}};
  for (const File& file : files()) {
    for (const Include& include : includes(file)) {
      for (const Library& library : libraries) {
        if (!starts_with(include.header, library.start)) continue;
        if (std::none_of(library.who.begin(), library.who.end(),
                         [&](const auto& who) { return starts_with(file.path, who); }))
          FAIL_CHECK(include.where << " includes <" << include.header << ">, which is for "
                                   << library.who.front() << " alone");
      }
    }
  }
}

TEST_CASE("tree: a mechanism's folder is complete") {
  const std::vector<std::string> headings = {"What it computes", "Shapes",    "Naive",
                                             "Recurrent",        "Chunkwise", "Backward",
                                             "On a GPU",         "Cost",      "Source"};
  for (const auto& entry : fs::directory_iterator(kRoot / "kernels")) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() || floor_of(name) < kMechanisms) continue;
    for (const std::string& needed : {std::string("README.md"), name + ".h",
                                      std::string("reference.h"), std::string("cpu.cpp")})
      if (!fs::exists(entry.path() / needed))
        FAIL_CHECK("kernels/" << name << "/" << needed << " is missing");

    std::vector<std::string> found;
    for (const std::string& line : read(entry.path() / "README.md").lines)
      if (starts_with(line, "## ")) found.push_back(line.substr(3));
    std::vector<std::string> wanted = headings;
    if (!fs::exists(entry.path() / "forward.cu")) std::erase(wanted, "On a GPU");
    INFO("kernels/" << name << "/README.md");
    CHECK(found == wanted);
  }
}

TEST_CASE("tree: the page of a folder names every file in it") {
  std::map<std::string, std::string> pages;  // by folder
  for (const File& file : files()) {
    const fs::path path = file.path;
    if (path.filename() != "README.md") continue;
    std::string& page = pages[path.parent_path().generic_string()];
    for (const std::string& line : file.lines) page += line + "\n";
  }
  const std::set<std::string> without_page = {"tests", "recipes"};
  for (const File& file : files()) {
    const fs::path path = file.path;
    if (!is_code(file.path) || without_page.count(parts(file.path).front()) > 0) continue;
    const std::string folder = path.parent_path().generic_string();
    const std::regex name("(^|[^A-Za-z0-9_])" + path.stem().string() + "($|[^A-Za-z0-9_])");
    if (!std::regex_search(pages[folder], name))
      FAIL_CHECK(folder << "/README.md does not name " << path.filename().string());
  }
}

TEST_CASE("tree: no line of code is longer than 100 columns") {
  for (const File& file : files()) {
    if (!is_code(file.path)) continue;
    for (std::size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      const auto columns = std::count_if(line.begin(), line.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0) != 0x80;  // a character's first byte
      });
      if (columns > 100) FAIL_CHECK(file.path << ":" << i + 1 << " has " << columns << " columns");
    }
  }
}

TEST_CASE("tree: a type is defined once in its namespace") {
  std::map<std::string, std::set<std::string>> where;  // by full name: the files that define it
  for (const File& file : files())
    if (is_code(file.path) && !starts_with(file.path, "tests/"))
      for (const std::string& name : types_of(file)) where[name].insert(file.path);
  CHECK(where.count("weft::Tensor") == 1);
  for (const auto& [name, paths] : where)
    if (paths.size() > 1)
      FAIL_CHECK(name << " is defined in " << *paths.begin() << " and in " << *paths.rbegin());
}

TEST_CASE("tree: no room of kernels writes into the namespace of another") {
  const std::regex opened(R"re(^namespace weft::kernels::(\w+))re");
  std::smatch match;
  for (const File& file : files()) {
    const auto own = parts(file.path);
    if (!is_code(file.path) || own.front() != "kernels") continue;
    for (const std::string& line : file.lines)
      if (std::regex_search(line, match, opened) && match[1] != own[1] &&
          fs::is_directory(kRoot / "kernels" / match[1].str()))
        FAIL_CHECK(file.path << " opens the namespace of kernels/" << match[1].str());
  }
}

TEST_CASE("tree: every package that ./weft asks for is included") {
  std::set<std::string> included;
  for (const File& file : files())
    if (is_code(file.path))
      for (const Include& include : includes(file)) included.insert(include.header);
  std::size_t packages = 0;
  const std::regex row(R"re(^([a-z0-9+-]+) +\|.*\| ([^|]*)$)re");
  std::smatch match;
  for (const std::string& line : read(kRoot / "weft").lines) {
    if (!std::regex_search(line, match, row)) continue;
    ++packages;
    std::istringstream probes(match[2].str());
    bool is_library = false, used = false;
    for (std::string probe; probes >> probe;) {
      std::erase(probe, '"');
      is_library = is_library || probe.find(".h") != std::string::npos;
      used = used || included.count(probe) > 0;
    }
    INFO(match[1].str());
    CHECK((used || !is_library));
  }
  CHECK(packages > 5);
}

TEST_CASE("tree: no file is longer than 600 lines") {
  for (const File& file : files())
    if (file.lines.size() > kMostLines && !starts_with(file.path, "tests/mutants/"))  // lists
      FAIL_CHECK(file.path << " has " << file.lines.size() << " lines");
}

TEST_CASE("tree: texts name nothing that a reader cannot open") {
  // Written in two pieces, for this file is read as well.
  const std::vector<std::string> words = {std::string("issue ") + "#", std::string("/wor") + "k/"};
  for (const File& file : files())
    for (std::size_t i = 0; i < file.lines.size(); ++i)
      for (const std::string& word : words)
        if (file.lines[i].find(word) != std::string::npos)
          FAIL_CHECK(file.path << ":" << i + 1 << " holds \"" << word << "\"");
}

TEST_CASE(
    "tree: only train/verbs/main.cpp ends the program") {  // and a child process its own copy of it
  const std::regex call(R"re((^|[^.\w])(exit|_exit|_Exit|quick_exit)\s*\()re");
  for (const File& file : files()) {
    if (!is_code(file.path) || file.path == "train/verbs/main.cpp" ||
        file.path == "core/child.cpp" || file.path == "train/verbs/start_ranks.cpp" ||
        // A rank that waits for a device that never answers can be ended in no other way.
        file.path == "core/ranks_meeting.cpp" || starts_with(file.path, "tests/"))
      continue;
    for (std::size_t i = 0; i < file.lines.size(); ++i)
      if (std::regex_search(without_words(file.lines[i]), call))
        FAIL_CHECK(file.path << ":" << i + 1 << " ends the program; throw an Error instead");
  }
}

TEST_CASE("tree: no test has a semicolon in its name") {  // CMake would make two names of it
  const std::regex name(R"re(TEST_CASE\("[^"]*;)re");
  for (const File& file : files()) {
    if (!starts_with(file.path, "tests/")) continue;
    for (std::size_t i = 0; i < file.lines.size(); ++i)
      if (std::regex_search(file.lines[i], name))
        FAIL_CHECK(file.path << ":" << i + 1 << " names a test with a semicolon");
  }
}
