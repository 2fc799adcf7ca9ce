// Cohere 2 (Command R7B, Command A): a mixer beside its MLP on one layer norm without bias; three
// layers with a window and interleaved rotary positions to one that sees all and has no positions.
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

void keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/true);
  k.set("model.norm", "layer");
  k.number("layer_norm_eps", "model.norm_eps", 1e-5);
  k.set("model.parallel", true);
  k.number("logit_scale", "model.logit_scale", 0.0625);
  k.integer("intermediate_size", "mlp.width");
  k.named("hidden_act", "layers.mlp", {{"silu", "swiglu"}, {"gelu_pytorch_tanh", "geglu"}}, "silu");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  int64_t pattern = 4;
  if (k.reads())
    pattern = k.in().integer("sliding_window_pattern", k.in().integer("layer_switch", pattern));
  window_by_layer(k, [=](int64_t layer) { return pattern > 0 && (layer + 1) % pattern != 0; });
  if (k.reads())
    for (DraftLayer& layer : k.draft().layers)
      if (!layer.keys.contains("window")) layer.keys["rotary"] = false;
  rope(k, {.base = 10000, .interleaved = true});
  k.fixed("use_qk_norm", false, "Cohere 2 has no norms of q and k");
  k.fixed("rotary_pct", 1.0, "all columns of a head turn");
  k.ignored({"_sliding_window_pattern", "position_embedding_type", "use_embedding_sharing",
             "use_gated_activation", "use_parallel_block", "use_parallel_embedding",
             "order_of_interleaved_layers"});
  k.dropouts({"attention_dropout"});
}

void tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.");
    gated_mlp_tensors(m, theirs + "mlp.", ours + "mlp.");
  }
}

const RegisteredArchitecture registered{{"cohere2", "Cohere2ForCausalLM", 1, keys, tensors}};

}  // namespace
}  // namespace weft::train
