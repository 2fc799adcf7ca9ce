// OLMo 2: norms after the parts, and of q and k over all heads at once.
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

void olmo2_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-5);
  k.set("layers.norms", "post");
  k.integer("intermediate_size", "mlp.width");
  k.named("hidden_act", "layers.mlp", {{"silu", "swiglu"}, {"gelu_pytorch_tanh", "geglu"}}, "silu");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  k.set("attention.qk_norm_whole", true);
  rope(k, {.base = 10000});
  k.dropouts({"attention_dropout"});
}

void olmo2_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.");
    m.linear(theirs + "post_attention_layernorm", ours + "mixer_post_norm");
    gated_mlp_tensors(m, theirs + "mlp.", ours + "mlp.");
    m.linear(theirs + "post_feedforward_layernorm", ours + "mlp_post_norm");
  }
}

const RegisteredArchitecture olmo2{{"olmo2", "Olmo2ForCausalLM", 1, olmo2_keys, olmo2_tensors}};

}  // namespace
}  // namespace weft::train
