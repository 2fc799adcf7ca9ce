// Falcon-H1: softmax attention and Mamba-2 beside each other in every layer, with factors all over.
#include <cmath>

#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/mamba_parts.h"
#include "train/exchange/parts.h"
#include "train/exchange/standards.h"

namespace weft::train {
namespace {

constexpr const char *kBoth = "side_by_side", *kAttentionPart = "attention.",
                     *kMambaPart = "mamba2.";

// The two parts of the layers as a draft of their own, whose keys the usual functions know.
Draft parts_of(const Draft& d) {
  Draft parts;
  parts.model = d.model;
  for (const char* part : {kAttentionPart, kMambaPart}) {
    DraftLayer layer;
    layer.mixer = std::string(part, std::string(part).size() - 1);
    if (!d.layers.empty())
      for (const auto& [key, value] : d.layers[0].keys.items())
        if (key.starts_with(part)) layer.keys[key.substr(std::string(part).size())] = value;
    parts.layers.push_back(layer);
  }
  return parts;
}

void join_parts(const Draft& parts, Draft& d) {
  for (const DraftLayer& part : parts.layers)
    for (const auto& [key, value] : part.keys.items())
      d.set(concat(kBoth, ".", part.mixer, ".", key), value);
}

// A list of factors, of which config.json has all or none; none are ones.
void factors(const Keys& k, const char* theirs, const std::vector<const char*>& ours) {
  if (!k.reads()) {
    Json all = Json::array();
    for (const char* key : ours) {
      const Json value = k.draft().get(key);
      if (value.is_null()) return;
      all.push_back(value);
    }
    k.out()[theirs] = all;
    return;
  }
  const Json all = k.in().has(theirs) ? k.in().at(theirs) : Json(ours.size(), 1.0);
  if (!all.is_array() || all.size() != ours.size())
    k.in().refuse(theirs, "expected ", ours.size(), " numbers");
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!all[i].is_number()) k.in().refuse(theirs, "expected ", ours.size(), " numbers");
    k.draft().set(ours[i], all[i].get<double>());
  }
}

// The keys are multiplied, and so are the scores.
void key_multiplier(const Keys& k) {
  const Json P = k.draft().get("attention.head_dim");
  if (P.is_null()) return;
  const double usual = 1 / std::sqrt(P.get<double>());
  const auto over = [&](double scale) { return scale / usual; };
  const auto times = [&](double factor) { return factor * usual; };
  if (k.reads())
    k.number("key_multiplier", "attention.scale", 1, times);
  else
    k.number("key_multiplier", "attention.scale", 1, over);
}

void falcon_norm(const Keys& k) {
  const char *const any = "mamba_rms_norm", *const late = "mamba_norm_before_gate";
  if (!k.reads()) {
    const Json norm = k.draft().get("mamba2.norm");
    k.out()[any] = norm != "none";
    k.out()[late] = norm != "gate_first";
    return;
  }
  const bool has = k.in().truth(any, false), before = k.in().truth(late, true);
  k.draft().set("mamba2.norm", !has ? "none" : before ? "gate_last" : "gate_first");
  if (has) mamba2_norm(k);
}

void falcon_parts(const Keys& k) {
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  rope(k, {.base = 10000});
  key_multiplier(k);
  k.number("attention_in_multiplier", "attention.input_scale", 1, itself);
  k.number("attention_out_multiplier", "attention.output_scale", 1, itself);
  mamba2_sizes(k, {.inner = "mamba_d_ssm", .inner_standard = 1024});
  limits_of_steps(k);
  falcon_norm(k);
  factors(
      k, "ssm_multipliers",
      {"mamba2.z_scale", "mamba2.x_scale", "mamba2.b_scale", "mamba2.c_scale", "mamba2.dt_scale"});
  k.number("ssm_in_multiplier", "mamba2.input_scale", 1, itself);
  k.number("ssm_out_multiplier", "mamba2.output_scale", 1, itself);
}

void falcon_h1_own_keys(const Keys& k) {
  k.layers("num_hidden_layers", kBoth);
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-5);
  k.integer("intermediate_size", "mlp.width");
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU, and the gate of our scan is silu");
  k.truth("mlp_bias", "mlp.bias", false);
  factors(k, "mlp_multipliers", {"mlp.gate_scale", "mlp.out_scale"});
  k.number("embedding_multiplier", "model.embedding_scale", 1, itself);
  k.number("lm_head_multiplier", "model.logit_scale", 1, itself);
  k.set("side_by_side.parts", Json{"mamba2", "attention"});
  Draft parts = parts_of(k.draft());
  if (k.reads()) {
    falcon_parts(Keys::reading(k.in(), parts));
    join_parts(parts, k.draft());
  } else {
    falcon_parts(Keys::writing(k.out(), parts));
  }
  k.fixed("projectors_bias", false, "our projections have no bias");
  k.ignored({"layers_block_type", "layer_types", "mlp_expansion_factor", "mamba_use_mlp",
             "attn_layer_indices"});
  passed_over(k);
}

void falcon_h1_keys(const Keys& k) {
  with_standards(k,
                 {{"num_key_value_heads", 8},
                  {"max_position_embeddings", 8192},
                  {"mamba_d_state", 256},
                  {"mamba_n_heads", 128}},
                 falcon_h1_own_keys);
}

void falcon_h1_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m, "model.final_layernorm");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    prenorm_tensors(m, theirs, ours);
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.attention.");
    mamba_tensors(m, theirs + "mamba.", ours + "mixer.mamba2.");
  }
}

const RegisteredArchitecture registered{
    {"falcon_h1", "FalconH1ForCausalLM", 1, falcon_h1_keys, falcon_h1_tensors}};

}  // namespace
}  // namespace weft::train
