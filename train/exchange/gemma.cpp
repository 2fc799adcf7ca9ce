// Gemma 3 (text): norms on both sides that multiply by 1 + w, five layers with a window to one
// without, each kind with its own rotary positions, norms of q and k, GeGLU.
#include <cmath>

#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// query_pre_attn_scalar s: scores are multiplied by s^-1/2.
void scale(const Keys& k) {
  if (k.reads())
    return k.number("query_pre_attn_scalar", "attention.scale", 256,
                    [](double s) { return std::pow(s, -0.5); });
  const Json scale = k.draft().get("attention.scale");
  if (scale.is_null()) return;
  const double exact = 1 / (scale.get<double>() * scale.get<double>()), whole = std::round(exact);
  const bool is_whole = std::abs(exact - whole) < 1e-9 * whole;
  k.out()["query_pre_attn_scalar"] = is_whole ? Json(static_cast<int64_t>(whole)) : Json(exact);
}

void softcap(const Keys& k, const char* theirs, const char* ours) {
  if (k.reads()) return k.number(theirs, ours, 0.0);
  const Json cap = k.draft().get(ours);
  k.out()[theirs] = cap == 0 ? Json() : cap;
}

void gemma3_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/true);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  k.set("model.norm_plus_one", true);
  k.set("model.embedding_scale", true);
  k.set("layers.norms", "both");
  k.integer("intermediate_size", "mlp.width");
  k.named("hidden_activation", "layers.mlp", {{"gelu_pytorch_tanh", "geglu"}, {"silu", "swiglu"}},
          "gelu_pytorch_tanh");
  if (k.reads()) k.ignored({"hidden_act"});  // older files have it beside hidden_activation
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  scale(k);
  softcap(k, "final_logit_softcapping", "model.logit_softcap");
  k.fixed("attn_logit_softcapping", Json(), "Gemma 3 has no soft cap of scores");
  k.fixed("use_bidirectional_attention", false, "a token sees those before it");
  k.ignored({"_sliding_window_pattern"});
  const int64_t pattern = k.reads() ? k.in().integer("sliding_window_pattern", 6) : 0;
  window_by_layer(k, [=](int64_t layer) { return pattern > 0 && (layer + 1) % pattern != 0; });
  ropes_by_kind(k, 1e4, 1e6);
  k.dropouts({"attention_dropout"});
}

void gemma3_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.");
    m.linear(theirs + "post_attention_layernorm", ours + "mixer_post_norm");
    m.linear(theirs + "pre_feedforward_layernorm", ours + "mlp_norm");
    gated_mlp_tensors(m, theirs + "mlp.", ours + "mlp.");
    m.linear(theirs + "post_feedforward_layernorm", ours + "mlp_post_norm");
  }
}

const RegisteredArchitecture gemma3{
    {"gemma3_text", "Gemma3ForCausalLM", 1, gemma3_keys, gemma3_tensors}};

}  // namespace
}  // namespace weft::train
