// `weft train`: starts a run, or goes on with one, in its folder.
#include <optional>

#include "core/file.h"
#include "train/run_lock.h"
#include "train/stop.h"
#include "train/trainer.h"
#include "train/verbs/run_page.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

bool holds_run(const std::string& out, const std::vector<SavedStep>& saved) {
  return !saved.empty() || has_best(out);
}

std::string newest_of(const std::string& out, const std::vector<SavedStep>& saved) {
  return saved.empty() ? best_path(out) : saved.back().path;
}

// Checkpoints after `step`, the one gone on from, are of another future: --resume would take the
// newest of them, and pruning would keep them.
void give_up_later(const std::string& out, int64_t step, const std::vector<SavedStep>& all,
                   const TrainArguments& a) {
  const bool best_too = step_of_best(out) > step;
  if (!best_too && (all.empty() || all.back().step <= step)) return;
  require(a.overwrite, out, " holds checkpoints after step ", step, " of ",
          a.from.empty() ? "its newest" : a.from, " (newest: ",
          best_too && (all.empty() || all.back().step <= step) ? best_path(out) : all.back().path,
          "). Give them up with --overwrite, or choose another folder with --set train.out=FOLDER");
  remove_checkpoints(out, step, best_too);
}

// What rank 0 alone can say: where the run goes on, empty for a new one. Nothing is removed yet.
std::string checkpoint_of(const TrainArguments& a, const std::string& out,
                          const std::vector<SavedStep>& earlier) {
  require(a.resume || a.overwrite || !holds_run(out, earlier), out,
          " holds a run already (newest: ", newest_of(out, earlier),
          "). Go on with --resume, start anew with --overwrite, or choose another folder with "
          "--set train.out=FOLDER");
  require(!a.resume || !a.from.empty() || !earlier.empty(), out,
          ": holds no checkpoint to go on from; start the run without --resume");
  if (!a.resume) return "";
  return a.from.empty() ? earlier.back().path : a.from;
}

// However the run ends, its page says that it ended.
int run_with(LivePage& page, Trainer& trainer) {
  trainer.after_metrics([&] { page.renew(); });
  int status = 1;
  try {
    status = trainer.run();
  } catch (...) {
    page.finish();
    throw;
  }
  const std::string fault = page.finish();
  if (!fault.empty()) show_line(concat("the run is saved, its page is not: ", fault));
  return status == 0 && !fault.empty() ? 2 : status;
}

int train_on(const TrainArguments& a, const std::shared_ptr<Ranks>& ranks,
             const std::string& device) {
  Recipe recipe = read_recipe(a.recipe, a.set, device);
  const std::string out = recipe.train.out;
  require(a.from.empty() || a.resume, "--from needs --resume");
  require(a.begin.empty() || !a.resume, "--begin starts a run, and --resume goes on with one; ",
          "leave one of them out");
  const std::string begin = a.begin.empty() ? "" : find_checkpoint(a.begin);
  require(begin.empty() || !same_file(run_of(begin), out), "--begin ", begin, " lies in ", out,
          ", whose checkpoints a new run would remove; choose another folder with --set "
          "train.out=FOLDER");
  std::optional<RunLock> lock;  // of the rank that writes the folder
  std::optional<LivePage> page;
  std::vector<SavedStep> earlier;
  std::string from;
  if (ranks->first()) {
    lock.emplace(out);
    if (a.page) page.emplace(out, a.overwrite);
    earlier = checkpoints_of(out);
    from = checkpoint_of(a, out, earlier);
  }
  from = ranks->exchange("the checkpoint to go on from", from)[0];
  Trainer trainer(std::move(recipe), ranks);
  if (!from.empty()) trainer.resume(from);
  if (!begin.empty()) trainer.begin_with(begin);
  if (ranks->first()) trainer.require_inputs_stay();
  if (!a.profile.empty()) trainer.profile_to(a.profile);
  trainer.require_same_on_all();
  note_stop_signals();
  // Only now, when nothing can be wrong any more, is anything of an earlier run removed.
  if (ranks->first() && a.resume) give_up_later(out, trainer.step(), earlier, a);
  if (ranks->first() && !a.resume) remove_checkpoints(out, -1, /*with_best=*/true);
  return page ? run_with(*page, trainer) : trainer.run();
}

}  // namespace

int run_train(const TrainArguments& a) {
  catch_stop_signals();
  return on_ranks(a.ranks, a.device,
                  {[&](int ranks) {
                     const std::string kind = a.ranks.gpus.empty() ? "cpu" : "cuda";
                     require_shards(read_recipe(a.recipe, a.set, kind, /*planned=*/true), ranks);
                   },
                   [&](const std::shared_ptr<Ranks>& ranks, const std::string& device) {
                     return train_on(a, ranks, device);
                   }});
}

}  // namespace weft::train
