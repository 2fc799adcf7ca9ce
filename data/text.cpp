#include "data/text.h"

#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "data/blocks.h"
#include "data/cutter.h"
#include "data/records.h"
#include "data/samples.h"

namespace weft::data {
namespace {

namespace fs = std::filesystem;

using Take = std::function<void(Document&&)>;

// --- King James ----------------------------------------------------------------------------------

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

// --- Files ---------------------------------------------------------------------------------------

constexpr std::string_view kHdf5 = "\x89HDF\r\n\x1a\n";

// What a file is instead of text; "" where it is text.
std::string other_than_text(const std::string& path) {
  Blocks blocks(path);
  std::string_view block = blocks.next();
  if (block.empty()) return "empty";
  if (block.starts_with(kHdf5)) return "HDF5, as checkpoints and datasets are";
  for (; !block.empty(); block = blocks.next())
    if (block.find('\0') != std::string_view::npos) return "binary";
  return "";
}

// A file that is named itself. A pipe is read as it comes, once.
void check_named(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  const fs::file_type type = status.type();
  require(type != fs::file_type::not_found || !fs::is_symlink(fs::symlink_status(path, error)),
          path, ": is a link to \"", fs::read_symlink(path, error).string(),
          "\", which is not there");
  require(type != fs::file_type::character && type != fs::file_type::block, path,
          ": is a device, expected a file of text");
  require(type != fs::file_type::socket, path, ": is a socket, expected a file of text");
}

void text_file(const std::string& path, const TextOptions& options, const Take& take) {
  std::error_code unknown;
  const auto bytes = fs::file_size(path, unknown);
  const bool known = !unknown && without_packing(path) == path, records = !options.field.empty();
  Cutter cutter(path, known ? static_cast<size_t>(bytes) : 0,
                records ? Cut::line : options.document,
                records ? field_of_records(path, options.field, take) : take);
  Blocks blocks(path);
  size_t done = 0;
  for (std::string_view block; !(block = blocks.next()).empty(); done += block.size()) {
    require(done > 0 || !block.starts_with(kHdf5), path,
            ": is an HDF5 file, expected text; a token dataset is named *.h5 and stands alone");
    const size_t zero = block.find('\0');
    require(zero == std::string_view::npos, path, ": is not text: byte ", done + zero,
            " is zero; expected UTF-8 text");
    cutter.add(block);
  }
  require(done > 0, path, ": is empty, expected text");
  cutter.finish();
}

// --- Folders -------------------------------------------------------------------------------------

bool wanted(const fs::path& path, const TextOptions& options) {
  const std::string name = without_packing(path.filename().string());
  return options.suffixes.empty() ||
         std::any_of(options.suffixes.begin(), options.suffixes.end(),
                     [&](const std::string& suffix) { return name.ends_with(suffix); });
}

// The folder of a run: of the one at hand, or one that looks like it.
bool is_run(const fs::path& folder, const TextOptions& options) {
  std::error_code error;
  return (!options.run_folder.empty() && fs::equivalent(folder, options.run_folder, error)) ||
         (fs::is_regular_file(folder / "recipe.toml", error) &&
          fs::is_directory(folder / "checkpoints", error));
}

struct Found {
  std::vector<std::string> files;
  LeftOut left_out;
};

void list_folder(const fs::path& folder, const TextOptions& options, Found& found);

void list_entry(const fs::directory_entry& entry, const TextOptions& options, Found& found) {
  const fs::path& path = entry.path();
  std::error_code error;
  const fs::file_type type = entry.status(error).type();  // of what a link leads to
  const bool link = entry.is_symlink(error);
  if (link && (type == fs::file_type::not_found || type == fs::file_type::none))
    found.left_out.add("links that lead nowhere", path.string());
  else if (link && type == fs::file_type::directory)
    found.left_out.add("links to folders", path.string());
  else if (type == fs::file_type::directory && is_run(path, options))
    found.left_out.add("folders of runs", path.string());
  else if (type == fs::file_type::directory)
    list_folder(path, options, found);
  else if (type != fs::file_type::regular)
    found.left_out.add("pipes, sockets or devices", path.string());
  else if (wanted(path, options))
    found.files.push_back(path.string());
}

void list_folder(const fs::path& folder, const TextOptions& options, Found& found) {
  std::error_code error;
  fs::directory_iterator at(folder, error);
  for (; !error && at != fs::directory_iterator(); at.increment(error))
    // Hidden ones are passed over, like the folders of version control.
    if (!at->path().filename().string().starts_with(".")) list_entry(*at, options, found);
  require(!error, folder.string(), ": the folder cannot be listed: ", error.message());
}

void text_folder(const std::string& folder, const TextOptions& options, const Take& take,
                 LeftOut& left_out) {
  Found found{{}, left_out};
  list_folder(folder, options, found);
  std::sort(found.files.begin(), found.files.end());
  bool any = false;
  for (const std::string& file : found.files) {
    const std::string other = other_than_text(file);
    if (!other.empty()) {
      found.left_out.add(other, file);
      continue;
    }
    any = true;
    text_file(file, options, take);
  }
  require(any, folder, ": is a folder without ",
          options.suffixes.empty() ? "files" : "files of the suffixes asked for", " of text",
          found.left_out.empty() ? "" : "; left out: ", found.left_out.text());
  left_out = std::move(found.left_out);
}

}  // namespace

void LeftOut::add(const std::string& kind, const std::string& path) {
  Kind& k = kinds_[kind];
  if (++k.count <= 3) k.named += (k.named.empty() ? "" : ", ") + path;
}

std::string LeftOut::text() const {
  std::string text;
  for (const auto& [name, kind] : kinds_)
    text += concat(text.empty() ? "" : "; ", kind.count, " ", name, " (", kind.named,
                   kind.count > 3 ? ", ..." : "", ")");
  return text;
}

LeftOut for_each_document(const std::vector<std::string>& sources, const TextOptions& options,
                          const Take& take) {
  require(!sources.empty(), "no text is named; expected files, folders or \"kjv\"");
  LeftOut left_out;
  for (const std::string& source : sources) {
    std::error_code ignored;
    if (source == "kjv") {
      king_james(options, take);
    } else if (source == kPythonLibrary) {
      for (const std::string& file : python_library()) text_file(file, options, take);
    } else if (source == kTables) {
      for (int64_t i = 0; i < kTableCount; ++i) take(generated_table(i));
    } else if (fs::is_directory(source, ignored)) {
      text_folder(source, options, take, left_out);
    } else {
      check_named(source);
      text_file(source, options, take);
    }
  }
  return left_out;
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
