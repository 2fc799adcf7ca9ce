// `weft compare`: several recipes on the same data, for as many tokens and from the same seeds;
// what they reached and what they cost. Each run is a run as any other, in its own folder.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "train/generate.h"
#include "train/pages/page.h"
#include "train/same_recipe.h"
#include "train/verbs/compare.h"
#include "train/verbs/curves.h"
#include "train/verbs/loaded.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

// What the data of two recipes must have in common, by what was read of it.
std::map<std::string, std::string> data_values(const Recipe& recipe) {
  std::map<std::string, std::string> values;
  for (const auto& [key, value] : recipe.toml.values())
    if (key.rfind("data.", 0) == 0) values[key] = value.text;
  return values;
}

void require_same_data(const Recipe& first, const Recipe& other) {
  const auto ours = data_values(first), theirs = data_values(other);
  for (const auto* values : {&ours, &theirs})
    for (const auto& [key, ignored] : *values) {
      const auto of = [&key = key](const auto& map) {
        const auto found = map.find(key);
        return found == map.end() ? std::string("nothing") : found->second;
      };
      require(of(ours) == of(theirs), other.path, ": ", key, " is ", of(theirs), ", but ", of(ours),
              " in ", first.path,
              "; the recipes must have the same data: give it to all with --set");
    }
}

int64_t steps_for(int64_t tokens, int64_t tokens_a_step) {
  return std::max<int64_t>(1, (tokens + tokens_a_step - 1) / tokens_a_step);
}

TrainArguments arguments_of(const CompareArguments& a, const Candidate& c, int64_t seed) {
  TrainArguments t;
  t.device = a.device;
  t.recipe = c.path;
  t.set = a.set;
  t.set.push_back(concat("train.steps=", c.steps));
  t.set.push_back(concat("train.seed=", seed));
  t.set.push_back(concat("train.out=", a.out, "/", c.name, "-seed-", seed));
  t.overwrite = a.overwrite;
  return t;
}

Candidate candidate_of(const CompareArguments& a, const std::string& path, const Recipe& first,
                       int64_t& tokens) {
  Recipe recipe = read_recipe(path, a.set, a.device);
  Candidate c;
  c.path = path;
  c.name = recipe.name;
  c.plan = make_plan(recipe);
  require_same_data(first, recipe);
  c.tokens_a_step = c.plan.batch[0] * c.plan.batch[1] * recipe.train.accumulate;
  c.context = recipe.toml.table("model").integer("context", {1, 1 << 30});
  if (tokens == 0) tokens = recipe.train.steps * c.tokens_a_step;
  c.steps = steps_for(tokens, c.tokens_a_step);
  for (int64_t seed = 1; seed <= a.seeds; ++seed) {
    OneRun run;
    run.seed = seed;
    run.arguments = arguments_of(a, c, seed);
    run.folder = concat(a.out, "/", c.name, "-seed-", seed);
    c.runs.push_back(std::move(run));
  }
  return c;
}

// The values of a file of settings as --set takes them: "data.task=\"mqar\"".
std::vector<std::string> settings_of(const std::string& path) {
  const TomlTable file = toml_from_file(path);
  std::vector<std::string> settings;
  std::istringstream lines(file.to_text());  // a table's name or one value in each line
  std::string table;
  for (std::string line; std::getline(lines, line);) {
    require(line.rfind("[[", 0) != 0, path, ": ", line,
            " is a list of tables, expected single keys");
    if (line.empty()) continue;
    if (line.front() == '[') {
      table = line.substr(1, line.size() - 2) + ".";
      continue;
    }
    const size_t at = line.find(" = ");
    settings.push_back(concat(table, line.substr(0, at), "=", line.substr(at + 3)));
  }
  require(!settings.empty(), path, ": holds no settings, expected tables and keys of a recipe");
  return settings;
}

std::vector<Candidate> candidates_of(const CompareArguments& a, int64_t& tokens) {
  Recipe first = read_recipe(a.recipes.front(), a.set, a.device);
  make_plan(first);
  std::vector<Candidate> all;
  for (const std::string& path : a.recipes) {
    Candidate c = candidate_of(a, path, first, tokens);
    for (const Candidate& other : all)
      require(other.name != c.name, path, " and ", other.path, " have the same name, \"", c.name,
              "\"; give one of them a name of its own (a key of the recipe)");
    all.push_back(std::move(c));
  }
  return all;
}

// Is a run at its end? If it is under way, it will be gone on with. Throws Error where its folder
// holds another run.
bool is_finished(const CompareArguments& a, const Candidate& c, OneRun& run) {
  if (a.overwrite) return false;
  const auto saved = checkpoints_of(run.folder);
  if (saved.empty()) return false;
  const std::string& newest = saved.back().path;
  const RunState state = read_state(open_checkpoint(newest));
  const int64_t steps = toml_from_text(state.recipe, newest)
                            .table("train")
                            .integer("steps", {0, INT64_MAX}, RunSettings().steps);
  require(steps == c.steps, run.folder, ": holds a run of ", steps, " steps, expected ", c.steps,
          "; train it anew with --overwrite, or choose another folder with --out");
  const Recipe recipe = read_recipe(run.arguments.recipe, run.arguments.set, a.device);
  const DataSettings data = read_data(recipe.toml);
  const int64_t vocabulary = vocabulary_of(data);
  const layers::Model model(recipe.toml, vocabulary, recipe.train.dtype, kMeta, recipe.train.seed);
  require_same_recipe(newest, state.recipe, recipe, vocabulary, /*same_data=*/true);
  run.arguments.resume = state.step < c.steps;
  return !run.arguments.resume;
}

// Tokens a second, one after another, from the run's newest checkpoint.
double decode_rate(const std::string& folder, const std::string& device) {
  const Loaded l = load(checkpoints_of(folder).back().path, device);
  const int64_t count = std::min<int64_t>(64, l.model->context() - 1);
  if (count < 1) return NAN;
  const SamplingSettings greedy{0, 0, 1, 1, l.model->vocabulary()};
  return generate(*l.model, {1}, count, greedy).tokens_per_second;
}

// Says which run begins and how long those that are left will take, as fast as those before.
class Queue {
 public:
  explicit Queue(double tokens) : left_(tokens) {}

  void begins(const std::string& what, size_t number, size_t of) {
    std::string text = concat("--- run ", number, " of ", of, ": ", what);
    if (done_ > 0) text += concat("; about ", duration_text(seconds_ / done_ * left_), " left");
    std::printf("%s ---\n", text.c_str());
    begun_ = Clock::now();
  }
  void ended(double tokens, bool trained) {
    left_ -= tokens;
    if (!trained) return;
    done_ += tokens;
    seconds_ += std::chrono::duration<double>(Clock::now() - begun_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  double left_, done_ = 0, seconds_ = 0;  // tokens, tokens, seconds
  Clock::time_point begun_;
};

// A comparison for each file of settings, or one. Nothing is trained or written.
std::vector<Comparison> comparisons_of(const CompareArguments& a) {
  std::vector<Comparison> comparisons;
  const std::vector<std::string> none = {""};
  for (const std::string& path : a.with.empty() ? none : a.with) {
    Comparison c;
    c.arguments = a;
    c.tokens = a.tokens;
    if (!path.empty()) {
      c.name = std::filesystem::path(path).stem().string();
      for (const Comparison& other : comparisons)
        require(other.name != c.name, path, ": another file of settings is called ", c.name,
                " too; their runs would lie in one folder");
      const std::vector<std::string> settings = settings_of(path);
      c.arguments.set.insert(c.arguments.set.begin(), settings.begin(), settings.end());
      c.arguments.out = a.out + "/" + c.name;
    }
    try {
      c.all = candidates_of(c.arguments, c.tokens);
    } catch (const Error& e) {
      if (path.empty()) throw;
      fail(path, ": its settings do not fit: ", e.what());
    }
    comparisons.push_back(std::move(c));
  }
  return comparisons;
}

struct Length {
  size_t runs = 0;
  double tokens = 0;
};

Length length_of(const std::vector<Comparison>& comparisons) {
  Length l;
  for (const Comparison& comparison : comparisons)
    for (const Candidate& c : comparison.all) {
      l.runs += c.runs.size();
      l.tokens +=
          static_cast<double>(c.steps * c.tokens_a_step) * static_cast<double>(c.runs.size());
    }
  return l;
}

// 0, or the status with which a run ended before its end.
int train_all(std::vector<Comparison>& comparisons) {
  const Length length = length_of(comparisons);
  size_t number = 0;
  Queue queue(length.tokens);
  for (Comparison& comparison : comparisons)
    for (Candidate& c : comparison.all)
      for (OneRun& run : c.runs) {
        const std::string on = comparison.name.empty() ? "" : " on " + comparison.name;
        const std::string what = concat(c.name, on, ", seed ", run.seed);
        const bool finished = is_finished(comparison.arguments, c, run);
        queue.begins(finished ? what + ", finished before" : what, ++number, length.runs);
        if (!finished)
          if (const int status = run_train(run.arguments)) return status;
        queue.ended(static_cast<double>(c.steps * c.tokens_a_step), !finished);
      }
  return 0;
}

void read_results(Comparison& comparison) {
  for (Candidate& c : comparison.all) {
    for (OneRun& run : c.runs) {
      run.metrics = read_metrics(run.folder);
      for (const std::string& line : run.metrics.skipped)
        std::fprintf(stderr, "weft: %s\n", line.c_str());
    }
    c.decode_rate = decode_rate(c.runs.front().folder, comparison.arguments.device);
  }
}

void write_results(const Comparison& comparison) {
  const std::string path = comparison.arguments.out + "/compare";
  ordered_json data = comparison_json(comparison);
  write_page(path + ".html", comparison_page(comparison, data), "compare fewer recipes or seeds");
  write_file(path + ".json", json_line(data) + "\n");
  for (const Candidate& c : comparison.all)
    std::printf("%s: held-out loss %.4f, %.0f tokens a second, state %s\n", c.name.c_str(),
                spread_of(c, [](const RunMetrics& r) { return last_of(r, "eval_loss"); }).mean,
                spread_of(c, rate_of).mean, bytes_text(double(c.plan.decode_bytes)).c_str());
  std::printf("%s.html and %s.json\n", path.c_str(), path.c_str());
}

void write_table(const CompareArguments& a, const std::vector<Comparison>& comparisons) {
  const std::string path = a.out + "/table";
  ordered_json data = table_json(comparisons);
  write_page(path + ".html", table_page(comparisons, data), "compare fewer recipes");
  write_file(path + ".json", json_line(data) + "\n");
  std::printf("%s%s.html and %s.json\n", table_text(comparisons).c_str(), path.c_str(),
              path.c_str());
}

}  // namespace

int run_compare(const CompareArguments& a) {
  require(a.seeds >= 1 && a.seeds <= 1000, "--seeds ", a.seeds, ": expected 1 to 1000");
  require(a.tokens >= 0, "--tokens ", a.tokens, ": expected at least 1");
  std::vector<Comparison> comparisons = comparisons_of(a);
  std::vector<std::string> pages;
  for (const Comparison& c : comparisons) pages.push_back(c.arguments.out + "/compare");
  if (!a.with.empty()) pages.push_back(a.out + "/table");
  std::vector<std::string> inputs = a.recipes;
  inputs.insert(inputs.end(), a.with.begin(), a.with.end());
  for (const Comparison& c : comparisons) make_folders(c.arguments.out);
  for (const std::string& page : pages)
    for (const char* ending : {".html", ".json"})
      require_page_output(page + ending, inputs, a.overwrite);
  if (const int status = train_all(comparisons)) {
    std::fprintf(stderr, "weft compare: stopped; the same command goes on from here\n");
    return status;
  }
  for (Comparison& c : comparisons) {
    read_results(c);
    write_results(c);
  }
  if (!a.with.empty()) write_table(a, comparisons);
  return 0;
}

}  // namespace weft::train
