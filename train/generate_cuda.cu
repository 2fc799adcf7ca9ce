// Generation on a GPU. The token drawn stays there, as the next step's input: the host only
// launches steps, one ahead of the token that it waits for. The first step is enqueued operation by
// operation, the second recorded as a CUDA graph; the work, and so every bit, is the same in both
// ways.
#include <array>
#include <optional>

#include "core/cuda_graph.cuh"
#include "train/generate.h"

namespace weft::train {
namespace {

class CudaGeneration {
 public:
  CudaGeneration(const layers::Model& model, layers::Generation& generation, int64_t count,
                 const SamplingSettings& settings, bool record, Device device)
      : model_(model),
        generation_(generation),
        settings_(settings),
        device_(device),
        first_(generation.position - 1),
        token_(empty({1, 1}, Dtype::i32, device)),
        tokens_(static_cast<size_t>(count) * 4, device),
        graph_(device),
        wanted_(record) {
    std::vector<double> chances;
    for (int64_t i = 0; i < count; ++i)
      chances.push_back(settings.chance(static_cast<uint64_t>(i)));
    chances_ = tensor_of(chances).to(device);
    place_ = tensor_of(std::vector<int32_t>{static_cast<int32_t>(first_)}).to(device);
    for (auto& e : ready_) e.emplace(device);
  }
  ~CudaGeneration() { cudaStreamSynchronize(cuda_stream(device_)); }  // a step may be under way

  // Draw number `i`: from `logits`, or, where they are absent, from a step with the token before.
  void draw(int64_t i, const Tensor& logits) {
    if (logits)
      draw_from(logits);
    else
      take_step();
    backend(device_).copy(tokens_.as<int32_t>() + i, token_.raw(), 4, current_stream(device_));
    ready_[static_cast<size_t>(i) % ready_.size()]->record();
  }
  int32_t token(int64_t i) const {
    ready_[static_cast<size_t>(i) % ready_.size()]->wait();
    return tokens_.as<int32_t>()[i];
  }
  const std::string& how() const { return how_; }

 private:
  void draw_from(const Tensor& logits) const {
    kernels::cuda_draw_token(logits, settings_, chances_, place_, first_, token_);
  }
  void work() const { draw_from(model_.next(token_, generation_)); }

  void take_step() {
    generation_.place = place_;
    if (graph_.good()) {
      ++generation_.position;
      return graph_.launch();
    }
    if (warm_ && wanted_) {
      const layers::Generation before = generation_;
      try {
        graph_.record([&] { work(); });
        how_ = "each token one CUDA graph";
        return graph_.launch();
      } catch (const Error& e) {
        generation_ = before;
        wanted_ = false;
        how_ = concat("steps are enqueued one operation at a time: ", e.what());
      }
    }
    work();
    warm_ = true;
  }

  const layers::Model& model_;
  layers::Generation& generation_;
  const SamplingSettings& settings_;
  Device device_;
  int64_t first_;
  Tensor token_, place_, chances_;
  Pinned tokens_;
  Graph graph_;
  std::array<std::optional<Event>, 2> ready_;
  bool wanted_, warm_ = false;
  std::string how_;
};

}  // namespace

void generate_on_cuda(const layers::Model& model, layers::Generation& generation,
                      const Tensor& logits, int64_t count, const SamplingSettings& settings,
                      const std::function<bool(int32_t)>& on_token, bool record, Generated& out) {
  if (count <= 0) return;
  CudaGeneration steps(model, generation, count, settings, record, logits.device());
  steps.draw(0, logits);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) steps.draw(i + 1, {});
    out.tokens.push_back(steps.token(i));
    if (on_token && !on_token(out.tokens.back())) break;
  }
  out.how = steps.how();
}

}  // namespace weft::train
