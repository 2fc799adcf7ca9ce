// Runs on several ranks, for the tests of what they compute and of how they end.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/file.h"
#include "core/ranks.h"
#include "tests/catch.h"
#include "tests/train/running.h"
#include "tests/train/shell.h"

namespace weft::tests {

inline const std::string kRanksRun = R"([sample]
tokens = 0
[train]
device = "cpu"
steps = 6
batch = 2
accumulate = 4
log_every = 1
eval_every = 3
eval_batches = 3
checkpoint_every = 2
out = "run"
)";

// What of metrics.jsonl does not depend on the clock or on memory.
inline std::string numbers_of(const Folder& f, const std::string& out) {
  std::istringstream in(read_file(f / (out + "/metrics.jsonl")));
  std::string all;
  for (std::string line; std::getline(in, line);) {
    auto j = nlohmann::ordered_json::parse(line);
    for (const char* key : {"tokens_per_second", "flops_per_second", "peak_bytes"}) j.erase(key);
    all += j.dump() + "\n";
  }
  return all;
}

inline std::vector<std::string> words(const std::string& out, int ranks,
                                      const std::vector<std::string>& more = {}) {
  std::vector<std::string> all = {"train",   "recipe.toml",        "--set", "train.out=" + out,
                                  "--ranks", std::to_string(ranks)};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

// The processes that a process started.
inline std::vector<int> processes_of(int parent) {
  std::vector<int> list;
  std::ifstream in("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) +
                   "/children");
  for (int child = 0; in >> child;) list.push_back(child);
  return list;
}

inline void skip_without_ranks() {
  if (const std::string why = why_no_cpu_ranks(); !why.empty()) SKIP(why);
}

}  // namespace weft::tests
