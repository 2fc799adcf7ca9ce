// Steps on a GPU. The first is enqueued operation by operation; the second is recorded as a CUDA
// graph, which is launched from then on. The host waits for nothing but the result of the step
// before the one that it has just started. The order of the work, and so every bit, is the same in
// both ways. Packed documents are padded by empty ones to a power of two; there is a graph for each
// such number. Where a model changes its operations (layers::Layer::form), the next step is
// enqueued, and the one after it recorded anew.
#include <array>
#include <bit>
#include <cmath>
#include <map>
#include <optional>

#include "autograd/ops.h"
#include "core/cuda_graph.cuh"
#include "core/mirror.h"
#include "kernels/rows/pointwise.h"
#include "train/distillation.h"
#include "train/gradients.h"
#include "train/step.h"

namespace weft::train {
namespace {

using autograd::Var;
using kernels::StepNumbers;

constexpr size_t kSlots = 2;  // steps under way

int64_t at(float StepNumbers::*member) {
  const StepNumbers n;
  return &(n.*member) - reinterpret_cast<const float*>(&n);
}

class CudaStepper final : public Stepper {
 public:
  CudaStepper(const layers::Model& model, AdamW& optimizer, const Recipe& recipe,
              const Distillation* distillation)
      : model_(model),
        distillation_(distillation),
        optimizer_(optimizer),
        recipe_(recipe),
        ranks_(optimizer.ranks()),
        device_(model.parameters().front().var.value().device()),
        gradients_(model.parameters(), optimizer.slices(), ranks_, recipe.train.accumulate) {
    const OwnerScope owner("optimizer");
    count_pieces();
    fused_.emplace(optimizer_.tensors(), optimizer_.settings(),
                   kernels::AdamwShare{piece_borders_[own()], piece_borders_.back(), device_});
    numbers_ = zeros({kernels::kStepNumbers}, Dtype::f32, device_);
    if (!ranks_.alone()) {
      losses_ = zeros({recipe_.train.accumulate, 2}, Dtype::f32, device_);
      failed_ = zeros({ranks_.size()}, Dtype::f32, device_);
    }
    if (device_.is_meta()) return;
    copies_.emplace(device_);
    for (Slot& s : slots_) {
      s.arrived.emplace(device_);
      s.numbers.emplace(2 * sizeof(StepNumbers), device_);
      s.done.emplace(device_);
    }
  }
  int64_t ahead() const override { return device_.is_meta() ? 0 : 1; }
  std::string how() const override { return how_; }

  void begin(int64_t step, const std::function<layers::Batch()>& next) override {
    Slot& slot = slots_[static_cast<size_t>(step) % kSlots];
    slot.result = {.step = step};
    slot.result.lr = rate_at(recipe_, step);
    stage_ = stage_at(recipe_, step);
    take_batches(slot, next);
    send_numbers(slot, step);
    run(slot);
    slot.result.peak_bytes = peak_;
    fetch_numbers(slot);
    if (under_way_++ == 0) oldest_ = step;
  }

  StepResult finish() override {
    Slot& slot = slots_[static_cast<size_t>(oldest_++) % kSlots];
    --under_way_;
    if (device_.is_meta()) return slot.result;
    slot.done->wait();
    ranks_.check();  // what a rank that is gone left undone is no result
    const StepNumbers& n = slot.numbers->as<StepNumbers>()[1];
    if (n.failed != 0) refuse(slot, n);
    slot.result.loss = n.loss;
    slot.result.norm = n.norm;
    return slot.result;
  }

 private:
  struct Slot {
    std::vector<layers::Batch> batches;  // on the host
    std::vector<Tensor> borders;         // of documents, padded; none where rows are whole
    Tensor arriving;                     // as inputs_, on the device
    std::optional<Pinned> tokens, numbers;
    std::optional<Event> arrived, done;
    StepResult result;
  };

  size_t own() const { return static_cast<size_t>(ranks_.rank()); }

  // Where each rank's pieces begin among those of all.
  void count_pieces() {
    piece_borders_.push_back(0);
    for (int r = 0; r < ranks_.size(); ++r) {
      int64_t n = piece_borders_.back();
      for (const View& v : optimizer_.slices().of(r)) n += kernels::adamw_pieces(v.end - v.begin);
      piece_borders_.push_back(n);
    }
  }

  void take_batches(Slot& slot, const std::function<layers::Batch()>& next) {
    const OwnerScope owner("batch");
    slot.batches.clear();
    for (int64_t i = 0; i < micro_batches(recipe_, device_, ranks_.size()); ++i) {
      slot.batches.push_back(next());
      slot.result.tokens += static_cast<double>(slot.batches.back().tokens.numel() * ranks_.size());
    }
    if (!inputs_) make_room(slot.batches);
    if (device_.is_meta()) return;
    pad_documents(slot);
    auto* const host = slot.tokens->as<int32_t>();
    for (size_t i = 0; i < slot.batches.size(); ++i) {
      int32_t* to = host + static_cast<int64_t>(i) * inputs_.size(1);
      for (const Tensor& t : {slot.batches[i].tokens, slot.batches[i].targets})
        to = std::copy_n(t.data<int32_t>(), t.numel(), to);
      if (!slot.borders.empty())
        std::copy_n(slot.borders[i].data<int32_t>(), slot.borders[i].numel(), to);
    }
    // To the GPU while the step before is at work there; in the step's own place once that is done.
    const size_t bytes = static_cast<size_t>(inputs_.numel()) * 4;
    {
      const StreamScope beside(copies_->stream());
      backend(device_).copy(slot.arriving.raw(), host, bytes, current_stream(device_));
      slot.arrived->record();
    }
    slot.arrived->hold_back();
    backend(device_).copy(inputs_.raw(), slot.arriving.raw(), bytes, current_stream(device_));
  }

  // A row a micro-batch: tokens, targets, and the borders of documents where they are packed.
  void make_room(const std::vector<layers::Batch>& batches) {
    const int64_t n = batches[0].tokens.numel();
    const bool packed = batches[0].cu_seqlens.defined();
    const int64_t borders = packed ? static_cast<int64_t>(std::bit_ceil(uint64_t(n))) + 1 : 0;
    inputs_ =
        empty({recipe_.train.accumulate / ranks_.size(), 2 * n + borders}, Dtype::i32, device_);
    for (Slot& s : slots_) {
      s.arriving = empty_like(inputs_);
      if (!device_.is_meta()) s.tokens.emplace(static_cast<size_t>(inputs_.numel()) * 4, device_);
    }
    // The memory may still be in use by what was enqueued before.
    if (!device_.is_meta()) backend(device_).synchronize(current_stream(device_));
  }

  static void pad_documents(Slot& slot) {
    slot.borders.clear();
    if (!slot.batches[0].cu_seqlens) return;
    int64_t most = 0;
    for (const layers::Batch& b : slot.batches) most = std::max(most, b.cu_seqlens.numel() - 1);
    const auto count = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(most)));
    for (const layers::Batch& b : slot.batches) {
      const Tensor padded = full({count + 1}, static_cast<double>(b.tokens.numel()), Dtype::i32);
      padded.slice(0, 0, b.cu_seqlens.numel()).copy_from(b.cu_seqlens);
      slot.borders.push_back(padded);
    }
  }

  void send_numbers(Slot& slot, int64_t step) {
    if (device_.is_meta()) return;
    auto* const host = slot.numbers->as<StepNumbers>();
    host[0] =
        kernels::step_numbers(settings_at(optimizer_, recipe_, step), step + 1, slot.result.lr);
    backend(device_).copy(numbers_.raw(), host, static_cast<size_t>(at(&StepNumbers::loss)) * 4,
                          current_stream(device_));
  }

  void fetch_numbers(Slot& slot) {
    if (device_.is_meta()) return;
    backend(device_).copy(slot.numbers->as<StepNumbers>() + 1, numbers_.raw(), sizeof(StepNumbers),
                          current_stream(device_));
    slot.done->record();
  }

  // Graphs of operations that the model no longer runs; the step before may still be one of them.
  void forget_other_forms() {
    const std::pair<int64_t, StageKind> form{model_.form(), stage_.kind};
    if (device_.is_meta() || form_ == form) return;
    if (!graphs_.empty()) backend(device_).synchronize(current_stream(device_));
    graphs_.clear();
    warm_ = false;
    form_ = form;
  }

  void run(const Slot& slot) {
    Allocator& memory = allocator(device_);
    forget_other_forms();
    if (warm_ && !refused_ && !device_.is_meta()) {
      const int64_t documents = slot.borders.empty() ? 0 : slot.borders[0].numel() - 1;
      Graph& graph = graphs_.try_emplace(documents, device_).first->second;
      if (graph.good()) return graph.launch();
      memory.reset_peak();
      try {
        graph.record([&] { work(slot); });
        how_ = "each step one CUDA graph";
        peak_ = std::max(peak_, memory.stats().peak);
        return graph.launch();
      } catch (const Error& e) {
        refused_ = true;
        how_ = concat("steps are enqueued one operation at a time: ", e.what());
      }
    }
    memory.reset_peak();
    work(slot);
    warm_ = true;
    peak_ = memory.stats().peak;
  }

  [[noreturn]] void refuse(const Slot& slot, const StepNumbers& n) {
    const int64_t step = slot.result.step;
    if (std::isfinite(n.loss) && std::isfinite(n.total) && std::isfinite(n.norm)) {
      const bool lost = !optimizer_.not_finite().empty();
      const auto all = ranks_.exchange_numbers("a lost update", std::vector<char>{lost});
      int owner = 0;
      while (owner + 1 < ranks_.size() && !all[static_cast<size_t>(owner)][0]) ++owner;
      refuse_together(ranks_, owner, /*lost=*/true, [&] { refuse_update(optimizer_, step); });
    }
    refuse_together(ranks_, ranks_.size() - 1, /*lost=*/false, [&] {
      layers::Batch batch = slot.batches.back();
      batch.tokens = batch.tokens.to(device_);
      batch.targets = batch.targets.to(device_);
      const bool of_loss = !std::isfinite(n.loss) || !std::isfinite(n.total);
      const auto again = [&] {
        return loss_of(model_, distillation_, batch, stage_at(recipe_, step)).total;
      };
      refuse_step(again, recipe_.train.accumulate, step,
                  of_loss ? static_cast<double>(std::isfinite(n.loss) ? n.total : n.loss) : 0.0,
                  n.norm);
    });
  }

  // All of a step that runs on the device.
  void work(const Slot& slot) {
    const int64_t count = recipe_.train.accumulate;
    const double factor = 1.0 / static_cast<double>(count);
    gradients_.begin_step();
    numbers_.slice(0, at(&StepNumbers::loss), at(&StepNumbers::norm)).zero();
    for (int64_t i = 0; i < micro_batches(recipe_, device_, ranks_.size()); ++i) {
      layers::Batch batch = slot.batches[static_cast<size_t>(i)];
      const Shape shape = batch.tokens.shape();
      const Tensor row = inputs_.select(0, i);
      const int64_t n = shape.numel();
      batch.tokens = row.slice(0, 0, n).reshape(shape);
      batch.targets = row.slice(0, n, 2 * n).reshape(shape);
      std::optional<MirrorScope> borders;
      if (!slot.borders.empty()) {
        batch.cu_seqlens = slot.borders[static_cast<size_t>(i)];
        borders.emplace(batch.cu_seqlens, row.slice(0, 2 * n, 2 * n + batch.cu_seqlens.numel()));
      }
      gradients_.begin_shard();
      layers::Loss loss = loss_of(model_, distillation_, batch, stage_);
      add(&StepNumbers::loss, i, loss.cross_entropy, factor);
      add(&StepNumbers::total, i, loss.total.value(), factor);
      const Var total = count == 1 ? loss.total : autograd::scale(loss.total, factor);
      loss = {};
      autograd::backward(total);
      gradients_.end_shard();
    }
    gradients_.end_step();
    if (ranks_.alone())
      fused_->step(numbers_);
    else
      update_together();
    for (const layers::Parameter& p : model_.parameters()) p.var.value().mark_written();
  }

  // Adds a micro-batch's number to the step's; of several ranks, notes it for the sum of all.
  void add(float StepNumbers::*member, int64_t i, const Tensor& value, double factor) {
    const Tensor x = kernels::scaled(value, factor).reshape({1});
    if (ranks_.alone()) return numbers_.slice(0, at(member), at(member) + 1).add_from(x);
    const int64_t shard = ranks_.rank() * (recipe_.train.accumulate / ranks_.size()) + i;
    const int64_t column = member == &StepNumbers::loss ? 0 : 1;
    losses_.select(0, shard).slice(0, column, column + 1).copy_from(x);
  }

  // This rank's slice is updated; what all must know goes round.
  void update_together() {
    const int64_t per_rank = recipe_.train.accumulate / ranks_.size();
    std::vector<int64_t> shards, one;
    for (int r = 0; r <= ranks_.size(); ++r) shards.push_back(r * per_rank), one.push_back(r);
    fused_->sum_squares();
    share({{losses_, shards}, {fused_->squares(), piece_borders_}});
    kernels::sum_losses(losses_, numbers_);
    fused_->update(numbers_);
    const int64_t flag = at(&StepNumbers::failed);
    failed_.slice(0, ranks_.rank(), ranks_.rank() + 1).copy_from(numbers_.slice(0, flag, flag + 1));
    share({{failed_, one}});
    kernels::join_failed(failed_, numbers_);
    optimizer_.gather_weights();
  }

  // Of each tensor, every rank's rows go to all others.
  void share(const std::vector<std::pair<Tensor, std::vector<int64_t>>>& tensors) {
    std::vector<Part> sends, receives;
    for (const auto& [t, borders] : tensors)
      for (int r = 0; r < ranks_.size(); ++r) {
        if (r == ranks_.rank()) continue;
        const auto i = static_cast<size_t>(r);
        sends.push_back({r, t.slice(0, borders[own()], borders[own() + 1])});
        receives.push_back({r, t.slice(0, borders[i], borders[i + 1])});
      }
    ranks_.transfer(sends, receives);
  }

  const layers::Model& model_;
  const Distillation* distillation_;
  AdamW& optimizer_;
  const Recipe& recipe_;
  Ranks& ranks_;
  Device device_;
  Gradients gradients_;
  std::vector<int64_t> piece_borders_;  // of the optimizer's pieces, by rank
  Tensor numbers_, inputs_;
  Tensor losses_, failed_;  // of all ranks, where there are several
  std::optional<kernels::CudaAdamw> fused_;
  std::map<int64_t, Graph> graphs_;  // by the number of documents, 0 where rows are whole
  std::array<Slot, kSlots> slots_;
  std::optional<SideStream> copies_;  // ends before what it copies
  int64_t oldest_ = 0, under_way_ = 0, peak_ = 0;
  Stage stage_;
  std::pair<int64_t, StageKind> form_{0, StageKind::text};
  bool warm_ = false, refused_ = false;
  std::string how_;
};

}  // namespace

std::unique_ptr<Stepper> make_cuda_stepper(const layers::Model& model, AdamW& optimizer,
                                           const Recipe& recipe, const Distillation* distillation) {
  return std::make_unique<CudaStepper>(model, optimizer, recipe, distillation);
}

}  // namespace weft::train
