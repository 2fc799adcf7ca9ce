// What the program's verbs do, as plain functions: command_line.cpp reads the words and calls them.
// Each returns the exit status, or throws Error (status 2) or CheckFailed (status 1).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/verbs/ranks.h"

namespace weft::train {

struct TrainArguments {
  std::string device;  // empty: the recipe's, else a GPU where there is one
  std::string recipe;
  std::vector<std::string> set;  // "table.key=value"
  bool resume = false;
  std::string from;        // resume from this checkpoint instead of the newest
  std::string begin;       // a new run begins with the parameters of this checkpoint
  bool overwrite = false;  // start anew where a run lies already; after `from`, where one is given
  std::string profile;     // a file for the trace of a few steps
  bool page = false;       // keep a page of its curves in the folder of the run
  RankArguments ranks;
};
int run_train(const TrainArguments& a);

struct EvalArguments {
  std::string device;  // empty: the recipe's, else a GPU where there is one
  std::string checkpoint;
  std::string data;     // a text file or folder instead of the recipe's held-out part
  int64_t batches = 0;  // 0: all of the held-out part
  bool ablate = false;  // what its ways are worth, and what it recalls
  RankArguments ranks;
};
int run_eval(const EvalArguments& a);

struct GenerateArguments {
  std::string device;  // empty: the recipe's, else a GPU where there is one
  std::string checkpoint, prompt;
  int64_t tokens = 200, top_k = 0;
  double temperature = 0.8, top_p = 1;
  uint64_t seed = 1;
};
int run_generate(const GenerateArguments& a);

struct InspectArguments {
  std::string device;  // empty: the recipe's, else a GPU where there is one
  std::string recipe;
  std::vector<std::string> set;
  bool json = false;
  int64_t ranks = 1;
};
int run_inspect(const InspectArguments& a);

struct ConvertArguments {
  std::string teacher;  // a checkpoint, or the folder of a run
  std::string recipe;   // of the student
  std::vector<std::string> set;
  std::string out;
  bool dry_run = false;
};
int run_convert(const ConvertArguments& a);

struct DataArguments {
  std::vector<std::string> sources;
  std::string out, tokenizer = "bytes", document = "file";
  std::string field;  // of JSON lines: what a document is
  int64_t vocabulary = 4096;
  std::string describe;  // print what a token dataset holds
};
int run_data(const DataArguments& a);

struct ReplayArguments {
  std::string recipe, out;
  std::vector<std::string> set;
  int64_t steps = 100;
};
int run_replay(const ReplayArguments& a);

struct LogitsArguments {
  std::string device;  // empty: the recipe's, else a GPU where there is one
  std::string checkpoint, in, out;
  std::string dtype;  // empty: the recipe's, where the device has it
};
int run_logits(const LogitsArguments& a);

struct PlotArguments {
  std::vector<std::string> runs;  // folders of runs, or their metrics.jsonl
  std::string out;                // empty: plot.html, plot.svg, or standard output
  std::string against = "steps";  // what the page shows first and a picture shows
  std::string metric;             // empty: all; a picture: the loss
  bool svg = false, csv = false, json = false, tensorboard = false, overwrite = false;
};
int run_plot(const PlotArguments& a);

struct ShowArguments {
  std::vector<std::string> checkpoints;  // or folders of runs
  std::string text;
  int64_t layer = -1, head = -1;  // -1: all
  int64_t channel = -1;           // of a scan; -1: the mean over its channels
  std::string out;                // empty: show.html, show.svg, or standard output
  bool svg = false, json = false, overwrite = false;
};
int run_show(const ShowArguments& a);

struct LessonArguments {
  std::string name;      // empty: the list of all
  std::string out;       // empty: lesson-NAME.html, lessons.html
  std::string text;      // what section 7 reads; empty: a short one of ours
  std::string model;     // a checkpoint or a folder of a run; empty: a small fresh model
  std::string check;     // answers to mark
  double budget = 0.02;  // seconds of repeats a time; 0: nothing is timed
  bool overwrite = false;
};
int run_lesson(const LessonArguments& a);

struct CompareArguments {
  std::string device;  // empty: the recipes', else a GPU where there is one
  std::vector<std::string> recipes;
  std::vector<std::string> set;      // of every recipe
  std::vector<std::string> with;     // files of settings for every recipe: a comparison for each
  int64_t tokens = 0;                // of training, for each run; 0: as the first recipe
  int64_t seeds = 1;                 // 1, 2, ...
  std::string out = "runs/compare";  // a folder
  bool overwrite = false;            // train anew what lies there
};
int run_compare(const CompareArguments& a);

int run_version();

}  // namespace weft::train
