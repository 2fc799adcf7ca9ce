// Mixtures of experts behind softmax attention: Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE.
#include <algorithm>

#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

void common(const Keys& k, double eps) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", eps);
  k.fixed("hidden_act", "silu", "our experts are SwiGLU");
  usual_heads(k);
  k.dropouts({"attention_dropout"});
}

void without_windows(const Keys& k) {
  k.fixed("use_sliding_window", false, "windows of this format are not read");
  k.ignored({"sliding_window", "max_window_layers", "layer_types"});
}

void mixtral_keys(const Keys& k) {
  common(k, 1e-5);
  rope(k, {.base = 1e6});
  k.set("layers.mlp", "moe");
  experts(k, {.experts = "num_local_experts", .width = "intermediate_size"});
  window_of_all(k);
  k.ignored({"router_jitter_noise"});
}

void qwen2_moe_keys(const Keys& k) {
  common(k, 1e-6);
  rope(k, {.base = 10000});
  k.truth("qkv_bias", "attention.bias", true);
  without_windows(k);
  qwen_experts(k, /*shared=*/true, /*normalize=*/false);
}

void qwen3_moe_keys(const Keys& k) {
  common(k, 1e-6);
  rope(k, {.base = 10000});
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  without_windows(k);
  qwen_experts(k, /*shared=*/false, /*normalize=*/false);
}

void olmoe_keys(const Keys& k) {
  common(k, 1e-5);
  rope(k, {.base = 10000});
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  k.set("attention.qk_norm_whole", true);
  k.fixed("clip_qkv", Json(), "our q, k and v have no bound");
  k.set("layers.mlp", "moe");
  experts(k, {.experts = "num_experts", .width = "intermediate_size", .balance = 0.01});
  k.truth("norm_topk_prob", "moe.normalize", false);
}

void named_mlp(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
               const std::string& ours) {
  qwen_mlp_tensors(m, layer, theirs + "mlp.", ours);
}

void mixtral_tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(
      d, m, /*out_bias=*/true,
      [](TensorMap& map, const DraftLayer&, const std::string& theirs, const std::string& ours) {
        mixtral_expert_tensors(map, theirs + "block_sparse_moe.", ours);
      });
}
void biased_tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(d, m, /*out_bias=*/true, named_mlp);
}
void qwen2_moe_tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(d, m, /*out_bias=*/false, named_mlp);
}

const RegisteredArchitecture mixtral{
    {"mixtral", "MixtralForCausalLM", 1, mixtral_keys, mixtral_tensors}};
const RegisteredArchitecture qwen2_moe{
    {"qwen2_moe", "Qwen2MoeForCausalLM", 1, qwen2_moe_keys, qwen2_moe_tensors}};
const RegisteredArchitecture qwen3_moe{
    {"qwen3_moe", "Qwen3MoeForCausalLM", 1, qwen3_moe_keys, biased_tensors}};
const RegisteredArchitecture olmoe{{"olmoe", "OlmoeForCausalLM", 1, olmoe_keys, biased_tensors}};

}  // namespace
}  // namespace weft::train
