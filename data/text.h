// Text from files: a file is a document, a folder is all of its files, and "kjv" is the King James
// Bible of the Debian package bible-kjv, a chapter a document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace weft::data {

struct Document {
  std::string name;  // the file, with "#2" for the second part of one that is cut at separators
  std::string text;
};

struct TextOptions {
  std::string separator;              // cuts a file into documents where it stands; "" does not
  std::vector<std::string> suffixes;  // of the files taken from a folder; none: all
  bool references = false;            // keep "Ge1:1" at the start of each verse of kjv
};

// Calls `take` for each document in a fixed order: sources as given, folders by sorted path (hidden
// files are left out), holding one source file at a time. Throws Error for what is missing, empty,
// or not text (a zero byte), and for a folder without files.
void for_each_document(const std::vector<std::string>& sources, const TextOptions& options,
                       const std::function<void(Document&&)>& take);

std::vector<Document> read_text(const std::vector<std::string>& sources,
                                const TextOptions& options = {});

}  // namespace weft::data
