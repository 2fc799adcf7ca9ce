#include "train/generate.h"

#include <algorithm>
#include <chrono>

namespace weft::train {
namespace {

void generate_here(const layers::Model& model, layers::Generation& generation, Tensor logits,
                   int64_t count, const SamplingSettings& settings,
                   const std::function<bool(int32_t)>& on_token, Generated& out) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = kernels::draw_token(logits, settings, static_cast<uint64_t>(i));
    out.tokens.push_back(token);
    if (on_token && !on_token(token)) break;
    if (i + 1 < count)
      logits = model.next(tensor_of(std::vector<int32_t>{token}).reshape({1, 1}), generation);
  }
}

}  // namespace

void check_length(const layers::Model& model, int64_t prompt, int64_t count) {
  require(prompt > 0, "the prompt is empty, expected at least one token");
  require(prompt <= model.context(), "the prompt has ", prompt, " tokens, the model's context ",
          model.context(), "; shorten the prompt");
  // The last token is fed to no step.
  const int64_t most = model.longest_text() - prompt + 1;
  const bool context = model.longest_text() == model.context();
  require(count <= most, count, " tokens after a prompt of ", prompt, " go beyond ",
          context ? concat("the context of ", model.context(),
                           ", past which no position was learned or has a weight")
                  : concat(model.longest_text(), " tokens, the longest text there can be"),
          "; ask for at most ", most);
}

Generated generate(const layers::Model& model, const std::vector<int32_t>& prompt, int64_t count,
                   const SamplingSettings& settings, const std::function<bool(int32_t)>& on_token,
                   bool record) {
  check_length(model, static_cast<int64_t>(prompt.size()), count);
  const autograd::NoGrad no_grad;
  layers::Generation generation;
  generation.capacity = static_cast<int64_t>(prompt.size()) + count;
  const Tensor logits =
      model.next(tensor_of(prompt).reshape({1, static_cast<int64_t>(prompt.size())}), generation);
  Generated out;
  const auto start = std::chrono::steady_clock::now();
  bool done = false;
  if constexpr (has_cuda)
    if (logits.device().is_cuda()) {
      generate_on_cuda(model, generation, logits, count, settings, on_token, record, out);
      done = true;
    }
  if (!done) generate_here(model, generation, logits, count, settings, on_token, out);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  out.tokens_per_second = static_cast<double>(out.tokens.size()) / std::max(seconds, 1e-9);
  out.state_bytes = generation.bytes();
  return out;
}

}  // namespace weft::train
