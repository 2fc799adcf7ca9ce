// Llama and those that differ from it in little: Mistral (a window), Qwen 2 (biases of q, k and v),
// Qwen 3 (norms of q and k).
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// What all have: RMS norms before the parts, SwiGLU, rotary positions.
void common(const Keys& k, double rope_base) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  k.integer("intermediate_size", "mlp.width");
  k.named("hidden_act", "layers.mlp", {{"silu", "swiglu"}, {"gelu_pytorch_tanh", "geglu"}}, "silu");
  usual_heads(k);
  rope(k, {.base = rope_base});
  k.dropouts({"attention_dropout"});
}

void llama_keys(const Keys& k) {
  common(k, 10000);
  k.truth("attention_bias", "attention.bias", false);
  k.truth("mlp_bias", "mlp.bias", false);
}

void mistral_keys(const Keys& k) {
  common(k, 10000);
  window_of_all(k);
}

// Layers from max_window_layers on slide, if any do.
void qwen_windows(const Keys& k) {
  bool any = false;
  if (k.reads()) {
    any = k.in().truth("use_sliding_window", false);
    if (!any) k.ignored({"layer_types", "sliding_window", "max_window_layers"});
  } else {
    for (const DraftLayer& layer : k.draft().layers) any = any || layer.keys.value("window", 0) > 0;
    k.out()["use_sliding_window"] = any;
  }
  if (!any) return;
  const int64_t first = k.reads() ? k.in().integer("max_window_layers", 28) : 0;
  window_by_layer(k, [=](int64_t layer) { return layer >= first; });
}

void qwen2_keys(const Keys& k) {
  common(k, 10000);
  k.set("attention.bias", true);
  qwen_windows(k);
}

void qwen3_keys(const Keys& k) {
  common(k, 10000);
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  qwen_windows(k);
}

void dense_mlp(TensorMap& m, const DraftLayer&, const std::string& theirs,
               const std::string& ours) {
  gated_mlp_tensors(m, theirs + "mlp.", ours);
}

void qwen2_tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(d, m, /*out_bias=*/false, dense_mlp);
}

const RegisteredArchitecture llama{
    {"llama", "LlamaForCausalLM", /*order=*/0, llama_keys, llama_tensors}};
const RegisteredArchitecture mistral{
    {"mistral", "MistralForCausalLM", 1, mistral_keys, llama_tensors}};
const RegisteredArchitecture qwen2{{"qwen2", "Qwen2ForCausalLM", 1, qwen2_keys, qwen2_tensors}};
const RegisteredArchitecture qwen3{{"qwen3", "Qwen3ForCausalLM", 1, qwen3_keys, llama_tensors}};

}  // namespace

void llama_tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(d, m, /*out_bias=*/true, dense_mlp);
}

}  // namespace weft::train
