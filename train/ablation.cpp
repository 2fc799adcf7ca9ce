#include "train/ablation.h"

#include <algorithm>
#include <cstdio>

#include "data/tasks.h"

namespace weft::train {
namespace {

constexpr int64_t kRows = 64;  // examples of each kind of recall

// How often the likeliest token is the next one, in [begin, end) of each row.
double hits(const layers::Model& model, const Tensor& tokens, Device device, int64_t begin,
            int64_t end) {
  const Tensor x = model.logits(tokens.to(device)).to(kCpu).to(Dtype::f32).contiguous();
  const int64_t B = x.size(0), T = x.size(1), V = x.size(2);
  int64_t right = 0;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = begin; t < end; ++t) {
      const float* const l = x.data<float>() + (b * T + t) * V;
      right += std::max_element(l, l + V) - l == tokens.data<int32_t>()[b * T + t + 1];
    }
  return static_cast<double>(right) / static_cast<double>(B * (end - begin));
}

// Rows whose second half is the first once more.
Tensor twice(data::BatchSource& held_out, int64_t T) {
  held_out.rewind();
  const Tensor all = held_out.next(kCpu).tokens.contiguous().reshape({-1});
  const int64_t half = T / 2, rows = std::min(kRows, all.numel() / half);
  const Tensor tokens = empty({rows, 2 * half}, Dtype::i32);
  for (int64_t b = 0; b < rows; ++b)
    for (const int64_t at : {int64_t{0}, half})
      std::copy_n(all.data<int32_t>() + b * half, half, tokens.data<int32_t>() + b * 2 * half + at);
  return tokens;
}

double pairs_recalled(const layers::Model& model, Device device) {
  const int64_t T = model.context() / 2 * 2;
  data::TaskOptions task;
  task.vocabulary = model.vocabulary();
  task.pairs = {std::clamp<int64_t>(T / 16, 1, 8)};
  if (T < 8 || task.vocabulary < 64) return -1;
  data::BatchSource examples(data::test_task(task, {.rows = 16, .length = T}, /*seed=*/1, kRows));
  return evaluate(model, examples, 0, device).accuracy;
}

Recall recall_of(const layers::Model& model, data::BatchSource& held_out, Device device) {
  const autograd::NoGrad no_grad;
  Recall r;
  r.pairs = pairs_recalled(model, device);
  if (model.context() < 8) return r;
  const Tensor tokens = twice(held_out, model.context());
  const int64_t half = tokens.size(1) / 2;
  r.first = hits(model, tokens, device, 0, half - 1);
  r.again = hits(model, tokens, device, half, 2 * half - 1);
  return r;
}

std::string told(const char* name, const Recall& r) {
  char line[160];
  std::snprintf(line, sizeof line,
                "%s recalls %.1f %% of text that it has read before (%.1f %% "
                "at first sight)",
                name, 100 * r.again, 100 * r.first);
  std::string text = r.again < 0 ? std::string(name) : line;
  if (r.pairs >= 0) {
    std::snprintf(line, sizeof line, "%s %.1f %% of pairs", r.again < 0 ? " recalls" : " and",
                  100 * r.pairs);
    text += line;
  }
  return text;
}

}  // namespace

Ablations ablations(layers::Model& model, const layers::Model* teacher, data::BatchSource& held_out,
                    int64_t batches, Device device) {
  const auto loss = [&](const layers::Model& m) {
    return evaluate(m, held_out, batches, device).loss;
  };
  Ablations a;
  a.loss = loss(model);
  if (model.has_both_ways()) {
    struct Restored {
      layers::Model& model;
      ~Restored() { model.leave_out(false, false); }
    } const restored{model};
    model.leave_out(/*softmax=*/true, /*linear=*/false);
    a.without_softmax = loss(model);
    model.leave_out(/*softmax=*/false, /*linear=*/true);
    a.without_linear = loss(model);
  }
  a.recall = recall_of(model, held_out, device);
  if (!teacher) return a;
  a.teacher_loss = loss(*teacher);
  a.teacher_recall = recall_of(*teacher, held_out, device);
  return a;
}

std::vector<std::pair<std::string, double>> Ablations::numbers() const {
  std::vector<std::pair<std::string, double>> all;
  for (const auto& [name, value] : std::initializer_list<std::pair<const char*, double>>{
           {"ablation_loss", loss},
           {"ablation_loss_without_softmax", without_softmax},
           {"ablation_loss_without_linear", without_linear},
           {"ablation_recall_pairs", recall.pairs},
           {"ablation_recall_again", recall.again},
           {"ablation_recall_first", recall.first},
           {"teacher_loss", teacher_loss},
           {"teacher_recall_pairs", teacher_recall.pairs},
           {"teacher_recall_again", teacher_recall.again},
           {"teacher_recall_first", teacher_recall.first}})
    if (value >= 0) all.emplace_back(name, value);
  return all;
}

std::string Ablations::text() const {
  char line[160];
  std::snprintf(line, sizeof line, "held-out loss %.4f", loss);
  std::string text = line;
  if (without_softmax >= 0) {
    std::snprintf(line, sizeof line, ", without softmax layers %.4f, without linear layers %.4f",
                  without_softmax, without_linear);
    text += line;
  }
  if (teacher_loss >= 0) {
    std::snprintf(line, sizeof line, "; the teacher's %.4f", teacher_loss);
    text += line;
  }
  text += "\n" + told("the model", recall);
  if (teacher_loss >= 0) text += "\n" + told("the teacher", teacher_recall);
  return text;
}

}  // namespace weft::train
