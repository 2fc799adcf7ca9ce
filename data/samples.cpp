#include "data/samples.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>

#include "core/error.h"
#include "core/random.h"

namespace weft::data {
namespace {

namespace fs = std::filesystem;

// N of "python3.N"; -1 for another name.
int minor_of(const std::string& name) {
  constexpr std::string_view kStart = "python3.";
  if (!name.starts_with(kStart)) return -1;
  int minor = -1;
  const char* const end = name.data() + name.size();
  const auto read = std::from_chars(name.data() + kStart.size(), end, minor);
  return read.ec == std::errc() && read.ptr == end ? minor : -1;
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

}  // namespace

std::vector<std::string> python_library() {
  fs::path newest;
  int minor = -1;
  std::error_code error;
  for (fs::directory_iterator at("/usr/lib", error), end; !error && at != end; at.increment(error))
    if (const int n = minor_of(at->path().filename().string());
        n > minor && fs::exists(at->path() / "os.py"))
      minor = n, newest = at->path();
  require(minor >= 0, "text \"", kPythonLibrary, "\": no /usr/lib/python3.N holds os.py; install ",
          "it (apt-get install libpython3-stdlib), or name a folder of code instead");
  std::vector<std::string> files;
  for (fs::directory_iterator at(newest, error), end; !error && at != end; at.increment(error))
    if (at->path().extension() == ".py" && at->is_regular_file() && at->file_size() > 0)
      files.push_back(at->path().string());
  require(!error, newest.string(), ": the folder cannot be listed: ", error.message());
  std::sort(files.begin(), files.end());
  return files;
}

Document generated_table(int64_t number) {
  static constexpr std::array<const char*, 24> kArticles = {
      "anvil", "barrel",  "candle", "drill",  "engine", "flask",  "gasket", "hammer",
      "ingot", "jacket",  "kettle", "ladder", "magnet", "needle", "oilcan", "pulley",
      "quill", "ratchet", "saddle", "trowel", "urn",    "valve",  "wedge",  "yoke"};
  constexpr size_t kOfATable = 5;
  const Random random(1, stream_of("generated tables") + static_cast<uint64_t>(number));
  uint64_t drawn = 0;
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random.below(n, drawn++)); };
  std::vector<std::string> rows;  // "anvil    | KQ57"
  std::string text = "article  | code\n";
  const auto first = static_cast<size_t>(below(kArticles.size()));
  for (size_t i = 0; i < kOfATable; ++i) {  // 5 steps of 7 in 24 meet no article twice
    std::string code;
    for (int letter = 0; letter < 2; ++letter) code += static_cast<char>('A' + below(26));
    rows.push_back(concat(padded(kArticles[(first + 7 * i) % kArticles.size()], 8), " | ", code,
                          10 + below(90)));
    text += rows.back() + "\n";
  }
  text += "order | article  | code | amount\n";
  for (int64_t i = 1; i <= 12; ++i)
    text += concat(padded(std::to_string(i), 5), " | ", rows[static_cast<size_t>(below(kOfATable))],
                   " | ", 1 + below(9), "\n");
  return {concat("table ", number), text};
}

}  // namespace weft::data
