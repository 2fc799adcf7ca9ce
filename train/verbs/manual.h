// The manual page and the shells' completions, all from the one table of verbs and flags.
#pragma once

#include <string>
#include <vector>

namespace weft::train {

struct ManualFlag {
  std::string name;   // "--set"; of a word "recipe"
  std::string value;  // "KEY=VALUE"; empty where it takes none
  std::string text;
};

struct ManualVerb {
  std::string name, text, footer;
  std::vector<ManualFlag> words, flags;
  std::vector<std::string> choices;  // what a word may be, beside the name of a file
};

struct Manual {
  std::string text;  // what the program is
  std::vector<ManualVerb> verbs;
};

// Of section 1, as `man` reads it.
std::string manual_page(const Manual& manual);
// Functions of the shells: verbs first, then a verb's flags, its choices, and files.
std::string bash_completion(const Manual& manual);
std::string zsh_completion(const Manual& manual);
std::string fish_completion(const Manual& manual);

// One of these by its name: man, bash, zsh or fish.
std::string manual_as(const std::string& kind, const Manual& manual);
std::vector<std::string> manual_kinds();

}  // namespace weft::train
