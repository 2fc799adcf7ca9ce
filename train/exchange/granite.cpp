// Granite 3 (dense): Llama with a factor on embeddings, branches, scores and logits.
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

void keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  k.integer("intermediate_size", "mlp.width");
  k.named("hidden_act", "layers.mlp", {{"silu", "swiglu"}, {"gelu_pytorch_tanh", "geglu"}}, "silu");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.truth("mlp_bias", "mlp.bias", false);
  granite_factors(k);
  rope(k, {.base = 10000});
  k.dropouts({"attention_dropout"});
}

const RegisteredArchitecture registered{{"granite", "GraniteForCausalLM", 2, keys, llama_tensors}};

}  // namespace
}  // namespace weft::train
