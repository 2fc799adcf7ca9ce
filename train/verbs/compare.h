// What `weft compare` trains and what comes of it: one recipe after the other on the same data.
#pragma once

#include <cmath>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/planner.h"
#include "train/verbs/metrics.h"
#include "train/verbs/verbs.h"

namespace weft::train {

// A recipe with one seed.
struct OneRun {
  TrainArguments arguments;
  std::string folder;
  int64_t seed = 1;
  RunMetrics metrics;
};

// A recipe with all seeds.
struct Candidate {
  std::string name, path;
  int64_t steps = 0, tokens_a_step = 0, context = 0;
  Plan plan;
  double decode_rate = 0;  // tokens a second
  std::vector<OneRun> runs;
};

// All recipes on one set of data.
struct Comparison {
  std::string name;            // of the file of settings (--with); empty where there is none
  CompareArguments arguments;  // with the settings of that file, and a folder of its own
  int64_t tokens = 0;          // of training, for each run
  std::vector<Candidate> all;
};

struct Spread {
  double mean = NAN, least = NAN, most = NAN;
};
Spread spread_of(const Candidate& c, const std::function<double(const RunMetrics&)>& f);

struct Measure {
  const char* key;
  const char* title;
  const char* format;
  double unit;  // of the table
  std::function<double(const RunMetrics&)> of;
};

// What is told of each run, in the order of a table.
const std::vector<Measure>& measures();
// The mean, and from the least to the most where seeds differ.
std::string spread_cell(const Measure& m, const Candidate& c);

nlohmann::ordered_json comparison_json(const Comparison& c);
std::string comparison_page(const Comparison& c, nlohmann::ordered_json& data);

// Several comparisons as one table, a row for each recipe and a column for each set of data: the
// part of right answers of a task, by kind of example too where there are several; bits a byte of
// text. The same as text for a terminal.
nlohmann::ordered_json table_json(const std::vector<Comparison>& all);
std::string table_page(const std::vector<Comparison>& all, nlohmann::ordered_json& data);
std::string table_text(const std::vector<Comparison>& all);

}  // namespace weft::train
