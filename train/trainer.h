// The run: steps, what is logged, held-out loss, samples, checkpoints, and a clean end at Ctrl-C.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/checkpoint.h"
#include "train/distillation.h"
#include "train/evaluate.h"
#include "train/profile.h"
#include "train/progress.h"
#include "train/source.h"
#include "train/step.h"

namespace weft::train {

// Is a checkpoint due at `step`, `seconds` after the last? By steps where the recipe counts them,
// else by time.
bool save_is_due(const RunSettings& settings, int64_t step, double seconds);

class Trainer {
 public:
  // Builds model, optimizer and data from the recipe. Throws Error for what is wrong in it. Of
  // several ranks, each has a trainer, and all of them are called alike.
  explicit Trainer(Recipe recipe, std::shared_ptr<Ranks> ranks = std::make_shared<Ranks>());

  // Goes on from a checkpoint, as the run that made it would have.
  void resume(const std::string& checkpoint);
  // Begins with the parameters of a checkpoint, whatever run or import made it.
  void begin_with(const std::string& checkpoint);
  // Throws Error if run() would write over what it reads.
  void require_inputs_stay() const;
  // Has run() write a trace of a few steady steps of all ranks.
  void profile_to(const std::string& path);
  // Has run() call this after each line of metrics.jsonl, at rank 0. What it throws is told once.
  void after_metrics(std::function<void()> f) { after_metrics_ = std::move(f); }
  // Throws RankFault that names the first rank whose program, recipe, data or step is not rank 0's.
  void require_same_on_all() const;
  // Runs to the last step or to a stop signal at any rank. Returns the exit status: 0; 128 and the
  // signal's number where it was stopped; 2 where the last state could not be saved, or best.h5 not
  // be renewed.
  int run();

  int64_t step() const { return state_.step; }
  const layers::Model& model() const { return *model_; }

 private:
  int run_steps();
  std::string good_checkpoint(bool begins_well) const;
  void make_folder() const;
  void announce() const;
  std::string no_samples() const;
  void profile_steps(int64_t begun);
  void write_profile();
  template <class F>
  auto guarded(const F& f);
  void begin_step();
  void tell_stage();
  void finish_steps(int64_t left);  // until `left` are under way
  void take_step();
  void agree();
  bool kept_all();
  void log(const StepResult& r, bool due);
  void keep_metrics(int code);
  void write_metrics(const nlohmann::ordered_json& line);
  bool is_due(int64_t every) const;
  bool evaluation_due() const;
  // Nothing that happens in these two ends the run. The first saves where the loss is the best so
  // far.
  void evaluate_now();
  void sample_now();
  void ablate();
  template <class F>
  void beside(const char* what, const F& f);
  void save();
  void settle_folder();
  std::string best_checkpoint() const;
  void keep_best();
  void keep_twins();
  bool best_is_kept() const { return state_.best_step < 0 || best_kept_ == state_.best_step; }

  std::shared_ptr<Ranks> ranks_;
  Recipe recipe_;
  DataSettings data_settings_;
  std::unique_ptr<layers::Model> model_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Source> source_;
  std::unique_ptr<Distillation> distillation_;  // where the recipe names a teacher
  std::unique_ptr<Stepper> stepper_;
  std::unique_ptr<Progress> progress_;
  std::unique_ptr<Metrics> metrics_;
  std::function<void()> after_metrics_;
  RunState state_;
  int64_t best_kept_ = -1;  // the step of best.h5; -1: there is none, or none that can be read
  bool best_known_ = false;
  int64_t twin_step_ = -1, best_twin_step_ = -1;  // of the twins that this process wrote last
  bool twins_kept_ = true;
  std::string last_saved_, unsettled_;
  std::string origin_;       // the folder of the run that was gone on from
  std::string last_good_;    // the last one from which a step was taken
  int64_t saved_step_ = -1;  // what this process saved last
  bool saved_ = true;        // did the last save succeed?
  int signal_ = 0;           // the stop signal that all ranks know of
  bool save_due_ = false;    // by rank 0's clock, if saves are due by time
  bool abandoned_ = false;   // a stop signal came during the last evaluation
  std::chrono::steady_clock::time_point save_time_;
  int64_t under_way_ = 0;  // steps begun and not finished
  std::string how_, profile_path_;
  std::unique_ptr<Profiler> profiler_;
  bool metrics_failed_ = false, profiling_ = false;
};

}  // namespace weft::train
