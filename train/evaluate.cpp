#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>

namespace weft::train {
namespace {

// Adds the rows' hits and labelled positions, by slice.
void count_hits(const Tensor& logits, const data::Batch& batch,
                std::map<int64_t, std::pair<double, double>>& by_slice) {
  const Tensor x = logits.to(kCpu).to(Dtype::f32).contiguous();
  const int64_t B = batch.tokens.size(0), T = batch.tokens.size(1), V = x.size(-1);
  const Tensor targets = batch.targets.to(kCpu);
  const int32_t* const target = targets.data<int32_t>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = b * T + t;
      if (target[row] == data::kIgnored) continue;
      const float* const l = x.data<float>() + row * V;
      auto& [hits, all] = by_slice[batch.slices.empty() ? 0 : batch.slices[static_cast<size_t>(b)]];
      hits += std::max_element(l, l + V) - l == target[row];
      all += 1;
    }
}

}  // namespace

Evaluation evaluate(const layers::Model& model, data::BatchSource& held_out, int64_t batches,
                    Device device, const std::function<bool()>& stop) {
  const autograd::NoGrad no_grad;
  int64_t count = held_out.batches().count();
  if (batches > 0) count = std::min(count, batches);
  held_out.rewind();
  Evaluation e;
  double nats = 0, bytes = 0;
  std::map<int64_t, std::pair<double, double>> hits;
  for (int64_t i = 0; i < count; ++i) {
    if (stop && stop()) {
      e.whole = false;
      return e;
    }
    data::Batch batch = held_out.next(device);
    if (batch.labelled == 0) continue;
    const auto labelled = static_cast<double>(batch.labelled);
    if (!batch.slices.empty())  // a task
      count_hits(model.logits(batch.tokens, batch.cu_seqlens), batch, hits);
    nats +=
        model.loss({batch.tokens, batch.targets, batch.cu_seqlens}).cross_entropy.item() * labelled;
    bytes += static_cast<double>(batch.target_bytes);
    e.tokens += labelled;
  }
  require(e.tokens > 0, "the held-out part has no token to predict in ", count,
          count == 1 ? " batch" : " batches",
          " (no document of it has two tokens); hold out more with data.held_out, or cut documents "
          "otherwise with data.document");
  e.loss = nats / e.tokens;
  e.perplexity = std::exp(e.loss);
  if (bytes > 0) e.bits_per_byte = nats / std::numbers::ln2 / bytes;
  double right = 0, all = 0;
  for (const auto& [slice, n] : hits) {
    e.slices[slice] = n.first / n.second;
    right += n.first;
    all += n.second;
  }
  if (all > 0) e.accuracy = right / all;
  return e;
}

std::string Evaluation::text() const {
  char line[160];
  if (bits_per_byte >= 0)
    std::snprintf(line, sizeof line, "held-out loss %.4f, %.4f bits per byte, perplexity %.3f",
                  loss, bits_per_byte, perplexity);
  else if (accuracy >= 0)
    std::snprintf(line, sizeof line, "held-out loss %.4f, accuracy %.4f", loss, accuracy);
  else  // text whose tokens stand for no bytes
    std::snprintf(line, sizeof line, "held-out loss %.4f, perplexity %.3f", loss, perplexity);
  std::string all = line;
  if (slices.size() > 1)
    for (const auto& [slice, part] : slices) {
      std::snprintf(line, sizeof line, ", %ld: %.3f", static_cast<long>(slice), part);
      all += line;
    }
  return all;
}

}  // namespace weft::train
