#include "train/step.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops.h"
#include "core/hash.h"
#include "core/text.h"
#include "train/distillation.h"
#include "train/gradients.h"

namespace weft::train {

using autograd::backward;
using autograd::Var;
namespace {

// Runs forward and backward once more with every result checked; what it throws says where.
std::string cause(const std::function<Var()>& loss, int64_t count) {
  try {
    const autograd::FiniteCheck check;
    backward(autograd::scale(loss(), 1.0 / static_cast<double>(count)));
  } catch (const Error& e) {
    return count == 1 ? e.what()
                      : concat("run again, one of ", count, " micro-batches: ", e.what());
  }
  if (count == 1) return "no single operation made it: the sum of the squares is too large";
  return concat("running one of ", count,
                " micro-batches again shows nothing: another made it, or their sum");
}

class HostStepper final : public Stepper {
 public:
  HostStepper(const layers::Model& model, AdamW& optimizer, const Recipe& recipe,
              const Distillation* distillation)
      : model_(model),
        distillation_(distillation),
        optimizer_(optimizer),
        recipe_(recipe),
        ranks_(optimizer.ranks()),
        device_(model.parameters().front().var.value().device()),
        gradients_(model.parameters(), optimizer.slices(), ranks_, recipe.train.accumulate) {}

  void begin(int64_t step, const std::function<layers::Batch()>& next) override {
    Allocator& memory = allocator(device_);
    memory.reset_peak();
    result_ = {.step = step};
    stage_ = stage_at(recipe_, step);
    const layers::Batch last = walk_shards(next);
    gradients_.end_step();
    const std::vector<kernels::AdamwTensor> tensors = optimizer_.tensors();
    if (!device_.is_meta()) join_numbers(kernels::gradient_squares(tensors), last);
    if (!std::isfinite(result_.norm))
      refuse_together(ranks_, ranks_.size() - 1, /*lost=*/false, [&] {
        refuse_step(again(last), recipe_.train.accumulate, step, 0, result_.norm);
      });
    update(tensors);
    optimizer_.gather_weights();
    result_.peak_bytes = memory.stats().peak;
  }
  StepResult finish() override { return result_; }

 private:
  // Of a shard.
  struct Losses {
    double cross_entropy = 0, total = 0;
    bool finite() const { return std::isfinite(cross_entropy) && std::isfinite(total); }
  };

  std::function<Var()> again(const layers::Batch& batch) const {
    return [this, batch] { return loss_of(model_, distillation_, batch, stage_).total; };
  }

  // Forward and backward over this rank's shards; returns the last batch.
  layers::Batch walk_shards(const std::function<layers::Batch()>& next) {
    const auto count = recipe_.train.accumulate;
    const double factor = 1.0 / static_cast<double>(count);
    losses_.clear();
    gradients_.begin_step();
    layers::Batch batch;
    for (int64_t i = 0; i < micro_batches(recipe_, device_, ranks_.size()); ++i) {
      batch = next();
      gradients_.begin_shard();
      layers::Loss loss = loss_of(model_, distillation_, batch, stage_);
      result_.tokens += static_cast<double>(batch.tokens.numel());
      if (!loss.cross_entropy.is_meta()) {
        losses_.push_back({loss.cross_entropy.item(), loss.total.value().item()});
        if (!losses_.back().finite() && ranks_.size() == 1) refuse_loss(losses_.back(), batch);
        // The others hear of it where they wait for us.
        if (!losses_.back().finite()) break;
      }
      const Var total = count == 1 ? loss.total : autograd::scale(loss.total, factor);
      loss = {};
      backward(total);
      gradients_.end_shard();
    }
    return batch;
  }

  void refuse_loss(const Losses& l, const layers::Batch& batch) const {
    refuse_step(again(batch), 1, result_.step,
                std::isfinite(l.cross_entropy) ? l.total : l.cross_entropy, 0);
  }

  // Losses and norm of the step from those of all ranks, added in the order of one.
  void join_numbers(const std::vector<double>& squares, const layers::Batch& last) {
    std::vector<double> mine{result_.tokens, static_cast<double>(losses_.size())};
    for (const Losses& l : losses_) mine.insert(mine.end(), {l.cross_entropy, l.total});
    mine.insert(mine.end(), squares.begin(), squares.end());
    const auto all = ranks_.exchange_numbers(concat("step ", result_.step + 1), mine);
    const double factor = 1.0 / static_cast<double>(recipe_.train.accumulate);
    result_.tokens = 0;
    double sum = 0;
    for (int r = 0; r < ranks_.size(); ++r) {
      const std::vector<double>& x = all[static_cast<size_t>(r)];
      result_.tokens += x[0];
      size_t at = 2;
      for (const size_t end = at + 2 * static_cast<size_t>(x[1]); at < end; at += 2) {
        const Losses l{x[at], x[at + 1]};
        if (!l.finite()) refuse_together(ranks_, r, /*lost=*/false, [&] { refuse_loss(l, last); });
        result_.loss += l.cross_entropy * factor;
      }
      for (; at < x.size(); ++at) sum += x[at];
    }
    result_.norm = std::sqrt(sum);
  }

  void update(const std::vector<kernels::AdamwTensor>& tensors) {
    const kernels::AdamwSettings settings = settings_at(optimizer_, recipe_, result_.step);
    const double clip = settings.clip;
    const double shrink = clip > 0 && result_.norm > clip ? clip / result_.norm : 1.0;
    result_.lr = rate_at(recipe_, result_.step);
    const bool good = optimizer_.update(tensors, settings, result_.step + 1, result_.lr,
                                        part_at(recipe_, result_.step), shrink);
    const auto all = ranks_.exchange_numbers(concat("the update of step ", result_.step + 1),
                                             std::vector<char>{good});
    for (int r = 0; r < ranks_.size(); ++r)
      if (!all[static_cast<size_t>(r)][0])
        refuse_together(ranks_, r, /*lost=*/true, [&] { refuse_update(optimizer_, result_.step); });
  }

  const layers::Model& model_;
  const Distillation* distillation_;
  AdamW& optimizer_;
  const Recipe& recipe_;
  Ranks& ranks_;
  Device device_;
  Gradients gradients_;
  std::vector<Losses> losses_;
  StepResult result_;
  Stage stage_;
};

}  // namespace

void refuse_step(const std::function<Var()>& loss_again, int64_t count, int64_t step, double loss,
                 double norm) {
  const bool of_loss = !std::isfinite(loss);
  throw NotFinite(concat(
      "step ", step + 1, ": ", of_loss ? "the loss" : "the gradient norm",
      std::isnan(of_loss ? loss : norm) ? " is not a number; " : " is infinite; ",
      cause(loss_again, count),
      ". The parameters are as they were before this step. Lower [optimizer] lr, or set clip."));
}

void refuse_update(const AdamW& optimizer, int64_t step) {
  const kernels::AdamwSettings s = optimizer.settings();
  // In f32 a smaller one is 0 as well.
  const bool none = static_cast<float>(s.eps) == 0;
  fail("step ", step + 1, ": after the update ", optimizer.not_finite(),
       ". The step is not kept, and nothing of it is saved. ",
       none ? concat("[optimizer] eps = ", s.eps,
                     " divides 0 by 0 where a gradient is 0: set eps, as in 1e-8.")
            : "Lower [optimizer] lr or weight_decay, or set clip.");
}

void refuse_together(Ranks& ranks, int owner, bool lost, const std::function<void()>& f) {
  std::string why;
  if (ranks.rank() == owner) {
    try {
      f();
    } catch (const Error& e) {
      why = e.what();
    }
  }
  why = ranks.exchange("what is not finite", why)[static_cast<size_t>(owner)];
  if (lost) throw Error(why);
  throw NotFinite(why);
}

void require_shards(const Recipe& recipe, int ranks) {
  const int64_t shards = recipe.train.accumulate;
  if (shards % ranks == 0) return;
  std::vector<std::string> fit;
  for (int64_t n = 1; n <= shards && fit.size() < 16; ++n)
    if (shards % n == 0) fit.push_back(concat(n));
  recipe.toml.table("train").refuse(
      "accumulate", "accumulate = ", shards, ": ", ranks, " ranks cannot share ", shards,
      " micro-batches a step evenly; ", joined(fit), fit.size() == 1 ? " rank fits" : " ranks fit",
      ", or set accumulate to a multiple of ", ranks,
      " (with a smaller batch, if the step is to stay as large)");
}

int64_t micro_batches(const Recipe& recipe, Device device, int ranks) {
  const int64_t own = recipe.train.accumulate / ranks;
  return device.is_meta() ? std::min<int64_t>(own, 2) : own;
}

std::unique_ptr<Stepper> make_stepper(const layers::Model& model, AdamW& optimizer,
                                      const Recipe& recipe, const Distillation* distillation) {
  if constexpr (has_cuda)
    if (model.parameters().front().var.value().device().takes_cuda_forms())
      return make_cuda_stepper(model, optimizer, recipe, distillation);
  return std::make_unique<HostStepper>(model, optimizer, recipe, distillation);
}

namespace {

void add_to(Hash64& hash, const std::string& name, const Tensor& values) {
  const Tensor t = values.to(kCpu).contiguous();
  hash.update(name);
  hash.update(t.raw(), static_cast<size_t>(t.numel() * size_of(t.dtype())));
}

}  // namespace

uint64_t parameter_hash(const std::vector<layers::Parameter>& parameters) {
  Hash64 hash;
  for (const layers::Parameter& p : parameters) add_to(hash, p.name, p.master);
  return hash.digest();
}

uint64_t parameter_hash(const AdamW& optimizer) {
  Hash64 hash;
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const layers::Parameter& p = optimizer.parameters()[i];
    const Tensor t = p.master ? p.master : optimizer.whole(i, AdamW::Kind::master);
    if (t) add_to(hash, p.name, t);
  }
  return hash.digest();
}

void require_equal_weights(const AdamW& optimizer, int64_t step) {
  Ranks& ranks = optimizer.ranks();
  if (ranks.size() == 1) return;
  std::vector<uint64_t> mine;
  for (const layers::Parameter& p : optimizer.parameters()) {
    Hash64 hash;
    add_to(hash, p.name, p.var.value());
    mine.push_back(hash.digest());
  }
  const auto all = ranks.exchange_numbers(concat("the weights of step ", step), mine);
  for (int r = 1; r < ranks.size(); ++r)
    for (size_t i = 0; i < mine.size(); ++i)
      if (all[static_cast<size_t>(r)][i] != all[0][i])
        throw RankFault(
            concat("step ", step, ": the weights differ: ", optimizer.parameters()[i].name, " of ",
                   ranks.name(r), " is not that of rank 0"),
            r, 1);
}

}  // namespace weft::train
