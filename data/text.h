// Text from files, packed ones (*.gz, *.zst) too: a file is a document, or each of its lines,
// paragraphs or JSON records is; a folder is all of its files, and "kjv" is the King James Bible of
// the Debian package bible-kjv, a chapter a document. "debian:python" is the library of the newest
// Python that Debian's packages brought, and "generated:tables" are tables that samples.h makes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace weft::data {

struct Document {
  std::string name;  // the file, with "#2" for the second part of one that is cut
  std::string text;
};

// What a document is. A line ends with LF, CR LF or a lone CR, and one that holds no more than
// spaces and tabs is blank.
enum class Cut : uint8_t {
  file,
  blank,  // what blank lines set apart
  line    // a line that is not blank, without its end
};

struct TextOptions {
  Cut document = Cut::file;
  std::string field;                  // files hold JSON lines, and this field of each is a document
  std::vector<std::string> suffixes;  // of the files taken from a folder; none: all
  bool references = false;            // keep "Ge1:1" at the start of each verse of kjv
  std::string run_folder;             // is left out of every folder: a run's text is not its source
};

// What stood in a folder and is no text: how many of each kind, and the first three by name.
class LeftOut {
 public:
  void add(const std::string& kind, const std::string& path);
  bool empty() const { return kinds_.empty(); }
  // "1 binary (books/b.png); 2 empty (books/a.txt, books/c.txt)".
  std::string text() const;

 private:
  struct Kind {
    int64_t count = 0;
    std::string named;  // the first three
  };
  std::map<std::string, Kind> kinds_;
};

// Calls `take` for each document in a fixed order: sources as given, folders by the bytes of the
// sorted paths. Holds one document and a block of its file at a time. A folder's hidden files are
// passed over. What else in it is no text is left out and returned: empty and binary files (a zero
// byte), links that lead nowhere or to a folder, what is no regular file, folders of runs. Throws
// Error where a source that is named itself is one of these, or cannot be read, and for a folder
// without text.
LeftOut for_each_document(const std::vector<std::string>& sources, const TextOptions& options,
                          const std::function<void(Document&&)>& take);

std::vector<Document> read_text(const std::vector<std::string>& sources,
                                const TextOptions& options = {});

}  // namespace weft::data
