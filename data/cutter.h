// Cuts the text of one file, which comes in blocks, into documents.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "data/text.h"

namespace weft::data {

class Cutter {
 public:
  // `bytes`: how large the file is, as far as known: room for a document that is most of it.
  Cutter(std::string name, size_t bytes, Cut how, std::function<void(Document&&)> take);
  void add(std::string_view block);
  void finish();  // no more comes

 private:
  void cut(bool last);
  void give(std::string&& document);

  std::string name_;
  size_t bytes_;
  Cut how_;
  std::function<void(Document&&)> take_;
  std::string text_;   // what no document was made of yet
  size_t looked_ = 0;  // of text_, where no separator begins
  int64_t nth_ = 1;
};

}  // namespace weft::data
