#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/parallel.h"
#include "core/units.h"
#include "train/ablation.h"
#include "train/generate.h"
#include "train/planner.h"
#include "train/run_lock.h"
#include "train/same_recipe.h"
#include "train/stop.h"
#include "train/twin.h"

namespace weft::train {

namespace fs = std::filesystem;

Trainer::Trainer(Recipe recipe, std::shared_ptr<Ranks> ranks)
    : ranks_(std::move(ranks)), recipe_(std::move(recipe)) {
  require_shards(recipe_, ranks_->size());
  ranks_->use_device(recipe_.train.device);
  set_products(recipe_.train);
  data_settings_ = read_data(recipe_.toml.table("data"));
  model_ = std::make_unique<layers::Model>(recipe_.toml, vocabulary_of(data_settings_),
                                           recipe_.train.dtype, recipe_.train.device,
                                           recipe_.train.seed);
  recipe_.finish();
  optimizer_ = std::make_unique<AdamW>(recipe_.optimizer, model_->parameters(), ranks_);
  source_ = std::make_unique<Source>(data_settings_, recipe_, model_->context(), nullptr,
                                     Share{ranks_->rank(), ranks_->size()});
  if (!recipe_.distill.teacher.empty()) {
    distillation_ = std::make_unique<Distillation>(recipe_, *model_);
    distillation_->require_tokens(
        tokens_in_words(data_settings_, source_->is_text() ? source_->tokenizer()->model() : ""));
    // Kept in checkpoints, so that a run goes on with this teacher alone.
    recipe_.toml.set("distill.hash", concat("\"", distillation_->hash(), "\""));
  }
  state_.seed = recipe_.train.seed;
  state_.best_loss = std::numeric_limits<double>::infinity();
  state_.recipe = recipe_.toml.to_text();
  state_.recipe_name = recipe_.name;
  if (source_->is_text()) state_.tokenizer = source_->tokenizer()->model();
}

void Trainer::resume(const std::string& checkpoint) {
  const std::string recipe = state_.recipe;
  const Hdf5Reader file = open_checkpoint(checkpoint);
  RunState saved = read_state(file);
  std::string other_data;
  try {
    source_->restore(saved.data);
  } catch (const Error& e) {
    other_data = e.what();
  }
  require_same_recipe(checkpoint, saved.recipe, recipe_, model_->vocabulary(), other_data.empty());
  require(other_data.empty(), checkpoint, ": ", other_data);
  load_parameters(file, model_->parameters());
  load_optimizer(file, *optimizer_);
  state_ = std::move(saved);
  state_.recipe = recipe;
  last_saved_ = checkpoint;
  origin_ = run_of(checkpoint);
}

void Trainer::begin_with(const std::string& checkpoint) {
  const Hdf5Reader file = open_checkpoint(checkpoint);
  require_same_model(checkpoint, read_state(file).recipe, recipe_, model_->vocabulary());
  load_parameters(file, model_->parameters());
  load_masters(file, *optimizer_);
}

// Why the run writes no samples where the recipe wants some; empty where it does.
std::string Trainer::no_samples() const {
  if (!source_->is_text() || recipe_.sample.tokens == 0 || recipe_.sample.prompt.empty()) return "";
  const size_t prompt = source_->encode(recipe_.sample.prompt).size();
  if (static_cast<int64_t>(prompt) < model_->context()) return "";
  return concat("sample.prompt has ", prompt, " tokens and leaves no room in the context of ",
                model_->context(), ": no samples are written");
}

void Trainer::announce() const {
  show_line(concat(recipe_.name, ": ", count_text(double(model_->parameter_count())),
                   " parameters, context ", model_->context(), ", ", source_->describe(), "; ",
                   recipe_.train.device, " ", recipe_.train.dtype, ", ",
                   ranks_->size() == 1 ? "" : concat(ranks_->size(), " ranks, "), thread_count(),
                   " threads, seed ", recipe_.train.seed));
  if (const std::string why = no_samples(); !why.empty()) show_line(why);
  show_line(concat("run folder: ", recipe_.train.out,
                   state_.step ? concat(", going on from step ", state_.step) : ""));
}

// What a run writes in its folder must not be what it reads. A recipe that lies there stays as it
// is, and so does text in a folder around it.
void Trainer::require_inputs_stay() const {
  const std::string& out = recipe_.train.out;
  require(!distillation_ || !same_file(run_of(distillation_->path()), out), out,
          ": is the folder of the teacher's run, whose checkpoints this run would remove; choose "
          "another with --set train.out=FOLDER");
  for (const std::string& source : data_settings_.sources)
    for (const char* name :
         {"recipe.toml", "metrics.jsonl", "best.h5", "best.safetensors", kEventFile})
      require(fs::is_directory(source) || !same_file(out + "/" + name, source), out,
              ": the run would write ", name, " over its input ", source,
              "; choose another folder with --set train.out=FOLDER");
}

bool save_is_due(const RunSettings& settings, int64_t step, double seconds) {
  constexpr double kBetweenSaves = 600;
  const int64_t every = settings.checkpoint_every;
  return every > 0 ? step % every == 0 : every < 0 && seconds >= kBetweenSaves;
}

void Trainer::make_folder() const {
  const std::string& out = recipe_.train.out;
  try {
    make_folders((fs::path(out) / "checkpoints").string());
  } catch (const Error& e) {
    fail(out, ": the run's folder cannot be made: ", e.what(),
         "; choose another with --set train.out=FOLDER");
  }
  remove_abandoned_files(out, /*alone=*/true);
  remove_abandoned_files(out + "/checkpoints", /*alone=*/true);
  if (!same_file(out + "/recipe.toml", recipe_.path))  // what was given stays as it is
    write_file(out + "/recipe.toml", state_.recipe);
}

void Trainer::require_same_on_all() const {
  if (ranks_->size() == 1) return;
  const std::vector<std::pair<std::string, std::string>> facts = {
      {"program", to_hex(hash64(read_file("/proc/self/exe")))},
      {"recipe", state_.recipe},
      {"data", concat(source_->state().at("fingerprint"))},
      {"step to go on from", concat(state_.step)}};
  for (const auto& [name, fact] : facts) {
    const auto all = ranks_->exchange("the " + name, to_hex(hash64(fact)));
    for (int r = 1; r < ranks_->size(); ++r)
      if (all[static_cast<size_t>(r)] != all[0])
        throw RankFault(concat("the ", name, " of ", ranks_->name(r), " is not that of ",
                               ranks_->name(0), "; give all ranks the same"),
                        r, 1);
  }
}

int Trainer::run() {
  try {
    return run_steps();
  } catch (const RankFault& e) {
    if (progress_) progress_->finish();
    throw RankFault(concat(e.what(), ". ", good_checkpoint(true)), e.rank, e.status);
  }
}

int Trainer::run_steps() {
  // One rank prints, and writes the run's folder.
  if (ranks_->first()) make_folder();
  announce();
  const int64_t steps = recipe_.train.steps;
  progress_ = std::make_unique<Progress>(steps, state_.step);
  bool owed = false;
  if (ranks_->first()) {
    settle_folder();
    metrics_ = std::make_unique<Metrics>(recipe_.train.out, state_.step, recipe_.log.tensorboard);
    if (!metrics_->dropped().empty()) progress_->say(metrics_->dropped());
    // A run that was stopped after a save and before what comes after it.
    owed = metrics_->lacks_evaluation() && evaluation_due();
  }
  owed = ranks_->exchange_numbers("the begin", std::vector<char>{owed})[0][0];
  if (state_.step >= steps && !owed) {
    show_line(concat("the run is finished: step ", state_.step, " of ", steps));
    return kept_all() ? 0 : 2;
  }
  stepper_ = make_stepper(*model_, *optimizer_, recipe_, distillation_.get());
  save_time_ = std::chrono::steady_clock::now();
  if (owed) evaluate_now();
  const int64_t first = state_.step;
  for (agree(); state_.step < steps && !signal_; agree()) {
    profile_steps(state_.step - first);
    take_step();
  }
  finish_steps(0);
  profile_steps(-1);
  const int signal = signal_;
  const bool done = state_.step >= steps && !abandoned_;
  if (signal && !done && saved_step_ != state_.step) save();
  if (done) sample_now();
  if (done) ablate();
  progress_->finish();
  if (!kept_all()) return 2;
  if (done) return 0;
  show_line(concat("stopped at step ", state_.step, abandoned_ ? ", before its evaluation" : "",
                   "; go on with --resume"));
  return 128 + signal;
}

// What the ranks must see alike: a signal that any of them got, rank 0's clock. A rank alone has
// seen it already.
void Trainer::agree() {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - save_time_;
  const bool due = save_is_due(recipe_.train, state_.step + 1, since.count());
  const auto all = ranks_->exchange_numbers(concat("the begin of step ", state_.step + 1),
                                            std::vector<int>{stop_signal, due});
  save_due_ = all[0][1] != 0;
  for (const std::vector<int>& numbers : all)
    if (signal_ == 0) signal_ = numbers[0];
}

// Does the folder hold what it should? Rank 0 knows.
bool Trainer::kept_all() {
  const bool all = saved_ && best_is_kept() && twins_kept_;
  return ranks_->exchange_numbers("the end of the run", std::vector<char>{all})[0][0] != 0;
}

// A step and what is due after it. A checkpoint comes first, as what follows may fail or be
// stopped.
void Trainer::take_step() {
  begin_step();
  const bool last = state_.step == recipe_.train.steps;
  const bool evaluate = evaluation_due(), sample = !last && is_due(recipe_.sample.every);
  const bool checkpoint = last || save_due_;
  finish_steps(evaluate || sample || checkpoint ? 0 : stepper_->ahead());
  if (last) progress_->finish();
  if (checkpoint) save();
  if (evaluate) evaluate_now();
  if (sample) sample_now();
}

bool Trainer::is_due(int64_t every) const {
  return every > 0 && state_.step > 0 && state_.step % every == 0;
}

bool Trainer::evaluation_due() const {
  return source_->held_out() &&
         (state_.step == recipe_.train.steps || is_due(recipe_.train.eval_every));
}

void Trainer::profile_to(const std::string& path) {
  require(recipe_.train.device.is_cuda(), "--profile records the work of a GPU; this run is on ",
          recipe_.train.device);
  std::vector<std::string> inputs = data_settings_.sources;
  inputs.insert(inputs.end(), {recipe_.path, last_saved_});
  if (ranks_->first()) require_output(path, inputs);
  profile_path_ = path;
  if constexpr (has_cuda) profiler_ = make_profiler();
}

// Records the steps from the fifth of this run to the tenth, or to its end (`begun` < 0); the first
// of them is left out of the summary.
void Trainer::profile_steps(int64_t begun) {
  constexpr int64_t kFrom = 4, kTo = 10;
  if (!profiler_) return;
  if (begun == kFrom) {
    finish_steps(0);
    profiler_->start();
    profiling_ = true;
  } else if (profiling_ && begun == kFrom + 1) {
    profiler_->settle();
  } else if (profiling_ && (begun == kTo || begun < 0)) {
    finish_steps(0);
    write_profile();
    profiling_ = false;
    profiler_.reset();
  }
}

// The trace of all ranks, with what rank 0's GPU did as a summary.
void Trainer::write_profile() {
  Profile own;
  std::string why;  // there is none; no reason to lose a run
  try {
    own = profiler_->stop();
  } catch (const Error& e) {
    why = e.what();
  }
  const auto texts = ranks_->exchange("a profile", packed(own.bars));
  if (!ranks_->first()) return;
  std::vector<std::vector<TraceBar>> all;
  for (const std::string& text : texts) all.push_back(unpacked(text));
  try {
    require(why.empty(), why);
    write_file(profile_path_, trace_of(all));
    progress_->say(concat(profile_path_, ": ", text(own.use, 12)));
  } catch (const Error& e) {
    progress_->say(concat("no profile: ", e.what(), "; the run goes on"));
  }
}

// What to go back to. A checkpoint whose parameters give no finite loss is not called good.
std::string Trainer::good_checkpoint(bool begins_well) const {
  if (last_saved_.empty()) return "No checkpoint was saved yet.";
  if (begins_well || last_good_ == last_saved_) return "Last good checkpoint: " + last_saved_;
  std::error_code ignored;
  const bool earlier = !last_good_.empty() && fs::exists(last_good_, ignored);
  return concat("Last good checkpoint: ", earlier ? last_good_ : "none", ", as ", last_saved_,
                " holds the parameters that this step began with");
}

// What a step throws, with the place of the last good checkpoint.
template <class F>
auto Trainer::guarded(const F& f) {
  try {
    return f();
  } catch (const OutOfMemory& e) {
    progress_->finish();
    const std::string smaller = smaller_batch(recipe_, ranks_->size());
    fail(e.what(), smaller.empty() ? "" : concat("\n", smaller, "."), "\n", good_checkpoint(true));
  } catch (const NotFinite& e) {
    progress_->finish();
    fail(e.what(), " ", good_checkpoint(false));
  } catch (const Error& e) {
    progress_->finish();
    fail(e.what(), " ", good_checkpoint(true));
  }
}

void Trainer::begin_step() {
  tell_stage();
  model_->at_step(state_.step);
  guarded([&] { stepper_->begin(state_.step, [&] { return source_->next(kCpu); }); });
  ++state_.step;
  ++under_way_;
  if (stepper_->how() != how_) progress_->say(how_ = stepper_->how(), /*counted=*/true);
}

void Trainer::finish_steps(int64_t left) {
  for (; under_way_ > left; --under_way_) {
    const StepResult r = guarded([&] { return stepper_->finish(); });
    state_.tokens += r.tokens;
    last_good_ = last_saved_;
    const int64_t done = r.step + 1;
    log(r, done == 1 || done == recipe_.train.steps || done % recipe_.train.log_every == 0);
  }
}

void Trainer::log(const StepResult& r, bool due) {
  char text[96];
  std::snprintf(text, sizeof text, "loss %.4f | norm %.2f | lr %.2e", r.loss, r.norm, r.lr);
  progress_->step(r.step + 1, text, r.tokens, due);
  if (!due) return;
  // On a GPU it would wait for a copy of all parameters, and steps are under way: at the end only.
  const bool compared = stepper_->ahead() == 0 || r.step + 1 == recipe_.train.steps;
  if (compared) require_equal_weights(*optimizer_, r.step + 1);
  const uint64_t hash = compared ? parameter_hash(*optimizer_) : 0;
  if (!ranks_->first()) return;
  nlohmann::ordered_json j;
  j["step"] = r.step + 1;
  j["loss"] = r.loss;
  if (distillation_) j["stage"] = 1 + static_cast<int>(stage_at(recipe_, r.step).kind);
  j["lr"] = r.lr;
  j["norm"] = r.norm;
  j["tokens"] = state_.tokens;
  if (compared) j["hash"] = to_hex(hash);
  j["peak_bytes"] = r.peak_bytes;
  j["tokens_per_second"] = progress_->tokens_per_second();
  j["flops_per_second"] = 3 * model_->flops_per_token() * progress_->tokens_per_second();
  write_metrics(j);
}

// Says once why metrics.jsonl or the event file lacks something.
void Trainer::keep_metrics(int code) {
  if (code == 0 || metrics_failed_) return;
  metrics_failed_ = true;
  progress_->say(concat(metrics_->failed(), " cannot be written: ", reason_of(code),
                        "; the run goes on without it"));
}

// What looks at the run meanwhile never ends it.
void Trainer::write_metrics(const nlohmann::ordered_json& line) {
  keep_metrics(metrics_->write(json_line(line)));
  if (!after_metrics_) return;
  try {
    after_metrics_();
  } catch (const std::exception& e) {
    after_metrics_ = nullptr;
    progress_->say(concat(e.what(), "; the run goes on without it"));
  }
}

// Whatever an evaluation or a sample meets is told, and the run goes on.
template <class F>
void Trainer::beside(const char* what, const F& f) {
  try {
    f();
  } catch (const RankFault&) {
    throw;
  } catch (const std::exception& e) {
    progress_->say(concat("step ", state_.step, ": ", what, ": ", e.what(), "; the run goes on"));
  }
}

void Trainer::evaluate_now() {
  beside("not evaluated", [&] {
    model_->at_step(state_.step);  // as `weft eval` will find it
    const Evaluation e = evaluate(
        *model_, *source_->held_out(), recipe_.train.eval_batches, recipe_.train.device,
        [] { return stop_signal != 0; }, ranks_.get());
    abandoned_ = !e.whole;
    if (abandoned_) return;
    if (e.loss < state_.best_loss) {
      state_.best_loss = e.loss;
      state_.best_step = state_.step;
      save();
    }
    if (!ranks_->first()) return;
    nlohmann::ordered_json j;
    j["step"] = state_.step;
    j["eval_loss"] = e.loss;
    j["perplexity"] = e.perplexity;
    if (e.bits_per_byte >= 0) j["bits_per_byte"] = e.bits_per_byte;
    if (e.accuracy >= 0) j["accuracy"] = e.accuracy;
    if (e.slices.size() > 1)
      for (const auto& [kind, part] : e.slices) j[concat("accuracy_", kind)] = part;
    write_metrics(j);
    progress_->say(concat("step ", state_.step, ": ", e.text()));
  });
}

void Trainer::tell_stage() {
  if (!distillation_) return;
  const Stage now = stage_at(recipe_, state_.step);
  if (now.begin == state_.step)
    progress_->say(concat("from step ", state_.step + 1, ": ", in_words(recipe_, now)));
}

// What of a student is the work of which way, beside the teacher.
void Trainer::ablate() {
  if (!distillation_ || !source_->held_out() || !ranks_->first()) return;
  beside("no ablations", [&] {
    model_->at_step(state_.step);
    const Ablations a = ablations(*model_, &distillation_->teacher(), *source_->held_out(),
                                  recipe_.train.eval_batches, recipe_.train.device);
    nlohmann::ordered_json j;
    j["step"] = state_.step;
    for (const auto& [name, value] : a.numbers()) j[name] = value;
    write_metrics(j);
    progress_->say(a.text());
  });
}

void Trainer::sample_now() {
  if (!ranks_->first()) return;
  if (!source_->is_text() || recipe_.sample.tokens == 0 || !no_samples().empty()) return;
  beside("no sample", [&] {
    model_->at_step(state_.step);
    const SamplingSettings s{recipe_.sample.temperature, recipe_.sample.top_k, recipe_.sample.top_p,
                             recipe_.train.seed + static_cast<uint64_t>(state_.step),
                             source_->tokenizer()->vocabulary()};
    const std::string prompt = recipe_.sample.prompt.empty() ? "\n" : recipe_.sample.prompt;
    const std::vector<int32_t> start = source_->encode(prompt);
    const int64_t room = model_->context() - static_cast<int64_t>(start.size());
    const auto g = generate(*model_, start, std::min(recipe_.sample.tokens, room), s,
                            [](int32_t) { return stop_signal == 0; });
    progress_->say(concat("--- sample at step ", state_.step, " ---\n", prompt,
                          source_->decode(g.tokens), "\n---"));
  });
}

void Trainer::save() {
  state_.data = source_->state();
  const std::string path = checkpoint_path(recipe_.train.out, state_.step);
  if (ranks_->first()) keep_metrics(metrics_->flush());
  try {
    save_checkpoint(path, state_, *optimizer_);
    saved_ = true;
  } catch (const RankFault&) {
    throw;
  } catch (const std::exception& e) {
    saved_ = false;
    progress_->say(
        concat("checkpoint not saved: ", e.what(), "; the run goes on. ",
               last_saved_.empty() ? "There is no earlier one." : "Last good one: " + last_saved_));
  }
  save_time_ = std::chrono::steady_clock::now();
  if (!saved_) return;
  last_saved_ = path;
  saved_step_ = state_.step;
  settle_folder();
}

// Makes up for what a kill or an error left out: best.h5 is of the best step, and there are no
// checkpoints beyond train.keep. What cannot be done is told, and tried again at the next
// checkpoint.
void Trainer::settle_folder() {
  if (!ranks_->first()) return;
  const std::string& out = recipe_.train.out;
  std::string why;
  const auto attempt = [&](const auto& f) {
    try {
      f();
    } catch (const Error& e) {
      why += concat(why.empty() ? "" : "; ", e.what());
    }
  };
  attempt([&] { keep_best(); });
  if (recipe_.train.safetensors) attempt([&] { keep_twins(); });
  attempt(
      [&] { prune_checkpoints(out, recipe_.train.keep, best_is_kept() ? -1 : state_.best_step); });
  if (!why.empty() && why != unsettled_)
    progress_->say(concat(why, "; the run goes on, and tries this again at the next checkpoint"));
  unsettled_ = why;
}

namespace {

bool is_regular(const std::string& path) {  // a link is somebody else's
  std::error_code missing;
  return fs::is_regular_file(fs::symlink_status(path, missing));
}

}  // namespace

// Where the checkpoint of the best step lies: here, or in the run that this one goes on from.
std::string Trainer::best_checkpoint() const {
  const int64_t best = state_.best_step;
  const std::string here =
      best == state_.step ? last_saved_ : checkpoint_path(recipe_.train.out, best);
  if (origin_.empty() || is_regular(here)) return here;
  for (const std::string& there : {checkpoint_path(origin_, best), best_path(origin_)})
    if (is_regular(there) && is_best(there, best, state_.best_loss)) return there;
  return here;
}

// best.h5 is a second name of the checkpoint with the lowest held-out loss.
void Trainer::keep_best() {
  const std::string& out = recipe_.train.out;
  const int64_t best = state_.best_step;
  if (!best_known_) best_kept_ = step_of_best(out);
  best_known_ = true;
  if (best_is_kept()) return;
  const std::string from = best_checkpoint();
  if (is_regular(from)) {
    try {
      renew_best(out, from);
    } catch (const Error& e) {
      fail("best.h5 is not renewed, and stays ",
           best_kept_ < 0 ? "absent" : concat("of step ", best_kept_), ": ", e.what());
    }
  } else {
    progress_->say(concat("the checkpoint of step ", best, ", the best so far, is not in ", out,
                          ": best.h5 ", best_kept_ < 0 ? "is absent" : "is an older one",
                          " until a step is better"));
  }
  best_kept_ = best;
}

// The newest checkpoint and best.h5 have their twins. A run that goes on writes them again, as it
// may have been killed before, or the recipe may want them from now on.
void Trainer::keep_twins() {
  const std::string& out = recipe_.train.out;
  const std::string newest = checkpoint_path(out, state_.step);
  twins_kept_ = false;
  if (twin_step_ != state_.step && is_regular(newest)) {
    save_twin(newest, model_->parameters());
    twin_step_ = state_.step;
  }
  if (best_twin_step_ != best_kept_ && has_best(out)) {
    const std::string best = best_path(out);
    require_own(twin_path(best));
    if (best_kept_ == twin_step_ && same_file(newest, best))
      share_file(twin_path(newest), twin_path(best));
    else
      save_twin(best, model_->parameters());
    best_twin_step_ = best_kept_;
  }
  twins_kept_ = true;
}

}  // namespace weft::train
