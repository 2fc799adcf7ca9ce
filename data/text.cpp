#include "data/text.h"

#include <sys/wait.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace weft::data {
namespace {

namespace fs = std::filesystem;

using Take = std::function<void(Document&&)>;

// --- King James -------------------------------------------------------------------------------------

std::string program_output(const std::string& command, int& status) {
  FILE* const pipe = ::popen(command.c_str(), "r");
  require(pipe != nullptr, "cannot run: ", command);
  std::string output(1 << 20, '\0');
  size_t done = 0;
  while (const size_t n = std::fread(output.data() + done, 1, output.size() - done, pipe)) {
    done += n;
    if (done == output.size()) output.resize(2 * done);
  }
  output.resize(done);
  status = ::pclose(pipe);
  return output;
}

// "1Ki8:15 And he said" -> "1Ki8"
std::string_view chapter_of(std::string_view line) {
  const size_t colon = line.find(':');
  return colon < line.find(' ') ? line.substr(0, colon) : std::string_view();
}

void king_james(const TextOptions& options, const Take& take) {
  int status = 0;
  const std::string all =
      program_output("bible -f 'Gen1:1-Rev22:21' 2>/dev/null </dev/null", status);
  require(status == 0 && all.size() > (1u << 20), "text \"kjv\": the program \"bible\" ",
          WIFEXITED(status) && WEXITSTATUS(status) == 127 ? "is missing" : "gave no text",
          "; install it (apt-get install bible-kjv), or name a text file or folder instead");
  Document chapter;
  for (std::string_view rest = all; !rest.empty();) {
    const size_t end = std::min(rest.size(), rest.find('\n') + 1);
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end);
    const std::string_view name = chapter_of(line);
    if (!name.empty() && name != chapter.name) {
      if (!chapter.text.empty()) take(std::move(chapter));
      chapter = {std::string(name), ""};
    }
    if (!options.references && !name.empty()) line.remove_prefix(line.find(' ') + 1);
    chapter.text += line;
  }
  if (!chapter.text.empty()) take(std::move(chapter));
}

// --- Files ------------------------------------------------------------------------------------------

void text_file(const std::string& path, const TextOptions& options, const Take& take) {
  std::string text = read_file(path);
  require(!text.empty(), path, ": is empty, expected text");
  const size_t zero = text.find('\0');
  require(zero == std::string::npos, path, ": is not text: byte ", zero,
          " is zero; expected UTF-8 text");
  if (options.separator.empty()) {
    take({path, std::move(text)});
    return;
  }
  int nth = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.size(), rest.find(options.separator));
    ++nth;
    if (end > 0) take({path + "#" + std::to_string(nth), std::string(rest.substr(0, end))});
    rest.remove_prefix(std::min(rest.size(), end + options.separator.size()));
  }
}

bool wanted(const fs::path& path, const TextOptions& options) {
  const std::string name = path.filename().string();
  return options.suffixes.empty() ||
         std::any_of(options.suffixes.begin(), options.suffixes.end(),
                     [&](const std::string& suffix) { return name.ends_with(suffix); });
}

void text_folder(const std::string& folder, const TextOptions& options, const Take& take) {
  std::vector<std::string> files;
  try {
    for (auto at = fs::recursive_directory_iterator(folder); at != fs::end(at); ++at) {
      if (at->path().filename().string().starts_with(".")) {
        at.disable_recursion_pending();  // hidden, like the folders of version control
        continue;
      }
      if (at->is_regular_file() && wanted(at->path(), options))
        files.push_back(at->path().string());
    }
  } catch (const fs::filesystem_error& error) {
    fail(folder, ": cannot be read: ", error.code().message());
  }
  require(!files.empty(), folder, ": is a folder without ",
          options.suffixes.empty() ? "files" : "files of the suffixes asked for",
          ", expected text");
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) text_file(file, options, take);
}

}  // namespace

void for_each_document(const std::vector<std::string>& sources, const TextOptions& options,
                       const Take& take) {
  require(!sources.empty(), "no text is named; expected files, folders or \"kjv\"");
  for (const std::string& source : sources) {
    std::error_code ignored;
    if (source == "kjv")
      king_james(options, take);
    else if (fs::is_directory(source, ignored))
      text_folder(source, options, take);
    else
      text_file(source, options, take);
  }
}

std::vector<Document> read_text(const std::vector<std::string>& sources,
                                const TextOptions& options) {
  std::vector<Document> documents;
  for_each_document(sources, options,
                    [&](Document&& document) { documents.push_back(std::move(document)); });
  require(!documents.empty(), "the text named holds no documents");
  return documents;
}

}  // namespace weft::data
