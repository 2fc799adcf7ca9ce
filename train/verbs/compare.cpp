// `weft compare`: several recipes on the same data, for as many tokens and from the same seeds;
// what they reached and what they cost. Each run is a run as any other, in its own folder.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "train/generate.h"
#include "train/pages/page.h"
#include "train/planner.h"
#include "train/same_recipe.h"
#include "train/verbs/curves.h"
#include "train/verbs/loaded.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

struct OneRun {
  TrainArguments arguments;
  std::string folder;
  int64_t seed = 1;
  RunMetrics metrics;
};

struct Candidate {
  std::string name, path;
  int64_t steps = 0, tokens_a_step = 0, context = 0;
  Plan plan;
  double decode_rate = 0;  // tokens a second
  std::vector<OneRun> runs;
};

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
  const DataSettings data = read_data(recipe.toml.table("data"));
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

struct Spread {
  double mean = NAN, least = NAN, most = NAN;
};

Spread spread_of(const Candidate& c, const std::function<double(const RunMetrics&)>& f) {
  Spread s;
  double sum = 0;
  for (const OneRun& run : c.runs) {
    const double v = f(run.metrics);
    sum += v;
    s.least = std::isnan(s.least) ? v : std::min(s.least, v);
    s.most = std::isnan(s.most) ? v : std::max(s.most, v);
  }
  s.mean = sum / static_cast<double>(c.runs.size());
  return s;
}

struct Measure {
  const char* key;
  const char* title;
  const char* format;
  double unit;  // of the table
  std::function<double(const RunMetrics&)> of;
};

const std::vector<Measure>& measures() {
  static const auto last = [](const char* key) {
    return [key](const RunMetrics& r) { return last_of(r, key); };
  };
  static const std::vector<Measure> all = {
      {"loss", "training loss", "%.4f", 1, last("loss")},
      {"eval_loss", "held-out loss", "%.4f", 1, last("eval_loss")},
      {"bits_per_byte", "bits a byte", "%.3f", 1, last("bits_per_byte")},
      {"accuracy", "answers right", "%.3f", 1, last("accuracy")},
      {"tokens_per_second", "tokens a second, training", "%.0f", 1, rate_of},
      {"peak_bytes", "peak memory, MiB", "%.1f", 1 << 20, last("peak_bytes")}};
  return all;
}

ordered_json json_of(const std::vector<Candidate>& all, int64_t tokens, int64_t seeds) {
  ordered_json j;
  j["made_by"] = "weft compare";
  j["tokens"] = tokens;
  j["seeds"] = seeds;
  j["recipes"] = ordered_json::array();
  for (const Candidate& c : all) {
    ordered_json r;
    r["name"] = as_utf8(c.name);
    r["steps"] = c.steps;
    r["tokens"] = c.steps * c.tokens_a_step;
    r["context"] = c.context;
    r["parameters"] = c.plan.parameter_count;
    r["forward_flops_per_token"] = c.plan.flops_forward;
    r["state_bytes"] = c.plan.decode_bytes;
    r["decode_tokens_per_second"] = c.decode_rate;
    for (const Measure& m : measures()) {
      const Spread s = spread_of(c, m.of);
      if (std::isfinite(s.mean))
        r[m.key] = {{"mean", s.mean}, {"least", s.least}, {"most", s.most}};
    }
    for (const OneRun& run : c.runs) {
      ordered_json one;
      one["seed"] = run.seed;
      one["folder"] = as_utf8(run.folder);
      for (const Measure& m : measures())
        if (const double v = m.of(run.metrics); std::isfinite(v)) one[m.key] = v;
      r["runs"].push_back(one);
    }
    j["recipes"].push_back(r);
  }
  return j;
}

std::string spread_cell(const Measure& m, const Candidate& c) {
  const Spread s = spread_of(c, m.of);
  if (!(s.least < s.most)) return cell(m.format, s.mean / m.unit);
  const auto text = [&](double v) { return number_text(m.format, v / m.unit); };
  return concat("<td>", text(s.mean), "<br><small>", text(s.least), " to ", text(s.most),
                "</small></td>");
}

std::string table_of(const std::vector<Candidate>& all) {
  std::string t = "<div class=\"scroll\"><table><tr><th>recipe</th><th>parameters</th>";
  const auto shown = [&](const Measure& m) {
    return std::any_of(all.begin(), all.end(),
                       [&](const Candidate& c) { return std::isfinite(spread_of(c, m.of).mean); });
  };
  for (const Measure& m : measures())
    if (shown(m)) t += concat("<th>", m.title, "</th>");
  t += "<th>state of a generation</th><th>tokens a second, generation</th><th>context</th></tr>\n";
  int colour = 0;
  for (const Candidate& c : all) {
    t += concat("<tr><td><span class=\"key c", colour++ % 8, "\"></span>", escaped(c.name),
                "</td><td>", count_text(double(c.plan.parameter_count)), "</td>");
    for (const Measure& m : measures())
      if (shown(m)) t += spread_cell(m, c);
    t += concat("<td>", bytes_text(double(c.plan.decode_bytes)), "</td>",
                cell("%.0f", c.decode_rate), "<td>", c.context, "</td></tr>\n");
  }
  return t + "</table></div>\n";
}

// Held-out loss over what a recipe pays for it.
Chart cost_chart(const std::vector<Candidate>& all, const std::string& across,
                 const std::function<double(const Candidate&)>& cost) {
  Chart chart{"held-out loss at the end", across, {}};
  int colour = 0;
  for (const Candidate& c : all) {
    Curve dots{c.name, {}, {}, colour++};
    dots.dots = true;
    for (const OneRun& run : c.runs) {
      dots.x.push_back(cost(c));
      dots.y.push_back(last_of(run.metrics, "eval_loss"));
    }
    chart.curves.push_back(std::move(dots));
  }
  return chart;
}

std::string page_of(const std::vector<Candidate>& all, ordered_json& data, int64_t tokens,
                    int64_t seeds) {
  Runs runs;
  std::vector<std::string> names;
  int colour = 0;
  for (const Candidate& c : all) {
    names.push_back(c.name);
    for (const OneRun& run : c.runs) {
      runs.push_back(run.metrics);
      runs.back().colour = colour;
    }
    ++colour;
  }
  Page page{"compare", "Comparison: " + joined(names), "", "", &data};
  page.note = concat("The same data, ", count_text(double(tokens)), " tokens of training each, ",
                     seeds == 1 ? "seed 1."
                                : concat("seeds 1 to ", seeds,
                                         ": means, and from the "
                                         "least to the most."),
                     " Speeds are of this machine while it did what else it did.");
  page.body = table_of(all) + switches("tokens") + "<main class=\"grid\">\n";
  for (const char* metric : {"loss", "tokens_per_second"})
    page.body += switched_charts(runs, metric);
  page.body += chart_element(cost_chart(all, "state of a generation, KiB", [](const Candidate& c) {
    return static_cast<double>(c.plan.decode_bytes) / 1024;
  }));
  page.body += chart_element(cost_chart(all, "FLOPs a token, forward",
                                        [](const Candidate& c) { return c.plan.flops_forward; }));
  page.body += "</main>\n";
  return page.text();
}

// Says which run begins and how long those that are left will take, as fast as those before.
class Queue {
 public:
  explicit Queue(int64_t tokens) : left_(tokens) {}

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

// 0, or the status with which a run ended before its end.
int train_all(const CompareArguments& a, std::vector<Candidate>& all) {
  double tokens = 0;
  size_t runs = 0, number = 0;
  for (const Candidate& c : all) {
    runs += c.runs.size();
    tokens += static_cast<double>(c.steps * c.tokens_a_step) * static_cast<double>(c.runs.size());
  }
  Queue queue(static_cast<int64_t>(tokens));
  for (Candidate& c : all)
    for (OneRun& run : c.runs) {
      const std::string what = concat(c.name, ", seed ", run.seed);
      const bool finished = is_finished(a, c, run);
      queue.begins(finished ? what + ", finished before" : what, ++number, runs);
      if (!finished)
        if (const int status = run_train(run.arguments)) return status;
      queue.ended(static_cast<double>(c.steps * c.tokens_a_step), !finished);
    }
  return 0;
}

}  // namespace

int run_compare(const CompareArguments& a) {
  require(a.seeds >= 1 && a.seeds <= 1000, "--seeds ", a.seeds, ": expected 1 to 1000");
  require(a.tokens >= 0, "--tokens ", a.tokens, ": expected at least 1");
  int64_t tokens = a.tokens;
  std::vector<Candidate> all = candidates_of(a, tokens);
  make_folders(a.out);
  const std::string html = a.out + "/compare.html", json = a.out + "/compare.json";
  for (const std::string& path : {html, json}) require_page_output(path, a.recipes, a.overwrite);
  if (const int status = train_all(a, all)) {
    std::fprintf(stderr, "weft compare: stopped; the same command goes on from here\n");
    return status;
  }
  for (Candidate& c : all) {
    for (OneRun& run : c.runs) {
      run.metrics = read_metrics(run.folder);
      for (const std::string& line : run.metrics.skipped)
        std::fprintf(stderr, "weft: %s\n", line.c_str());
    }
    c.decode_rate = decode_rate(c.runs.front().folder, a.device);
  }
  ordered_json data = json_of(all, tokens, a.seeds);
  write_page(html, page_of(all, data, tokens, a.seeds), "compare fewer recipes or seeds");
  write_file(json, json_line(data) + "\n");
  for (const Candidate& c : all)
    std::printf("%s: held-out loss %.4f, %.0f tokens a second, state %s\n", c.name.c_str(),
                spread_of(c, [](const RunMetrics& r) { return last_of(r, "eval_loss"); }).mean,
                spread_of(c, rate_of).mean, bytes_text(double(c.plan.decode_bytes)).c_str());
  std::printf("%s and %s\n", html.c_str(), json.c_str());
  return 0;
}

}  // namespace weft::train
