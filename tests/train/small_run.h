// A run that takes no time. A test's recipe is kSmallModel with the test's own tables behind it.
#pragma once

#include <string>

#include "tests/train/program.h"

namespace weft::tests {

inline const std::string kSmallModel = R"([model]
width = 16
layers = 1
pattern = ["attention"]
context = 16
[attention]
heads = 2
[data]
source = "text.txt"
)";

inline std::string small_text() {
  std::string words;
  for (int i = 0; i < 400; ++i) words += "word " + std::to_string(i) + " of the text\n";
  return words;
}

inline void write_run(const Folder& folder, const std::string& recipe) {
  folder.write("text.txt", small_text());
  folder.write("recipe.toml", recipe);
}

}  // namespace weft::tests
