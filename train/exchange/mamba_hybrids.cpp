// Hybrids of softmax attention and Mamba-2 that differ in the layer: Bamba and Granite 4.
#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/mamba_parts.h"
#include "train/exchange/parts.h"
#include "train/exchange/standards.h"

namespace weft::train {
namespace {

// --- Bamba ---------------------------------------------------------------------------------------

void bamba_layers(const Keys& k) {
  const char* const key = "attn_layer_indices";
  Draft& d = k.draft();
  if (!k.reads()) {
    Json at = Json::array();
    for (size_t i = 0; i < d.layers.size(); ++i)
      if (d.layers[i].mixer == "attention") at.push_back(i);
    k.out()[key] = at;
    return;
  }
  if (!k.in().has(key)) return;
  const Json& at = k.in().at(key);
  if (!at.is_array()) k.in().refuse(key, "expected a list of layers");
  for (const Json& i : at) {
    if (!i.is_number_integer() || i < 0 || i >= d.layers.size())
      k.in().refuse(key, "expected numbers of the ", d.layers.size(), " layers, from 0 on");
    d.layers[i.get<size_t>()].mixer = "attention";
  }
}

void bamba_own_keys(const Keys& k) {
  k.layers("num_hidden_layers", "mamba2");
  bamba_layers(k);
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-5);
  k.number("z_loss_coefficient", "model.z_loss", 0.0);
  k.integer("intermediate_size", "mlp.width");
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU, and the gate of our scan is silu");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.truth("mlp_bias", "mlp.bias", false);
  rope(k, {.base = 10000, .fraction = 0.5});
  mamba2_norm(k);
  mamba2_sizes(k, {});
  limits_of_steps(k);
  k.ignored({"layer_types", "layers_block_type", "attn_rotary_emb"});
  passed_over(k);
}

void bamba_keys(const Keys& k) {
  with_standards(k,
                 {{"num_key_value_heads", 8},
                  {"max_position_embeddings", 262144},
                  {"mamba_d_state", 256},
                  {"mamba_n_heads", 128}},
                 bamba_own_keys);
}

void bamba_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m, "model.final_layernorm");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    prenorm_tensors(m, theirs, ours);
    mixer_tensors(m, d.layers[i], theirs, ours);
  }
}

// --- Granite 4 -----------------------------------------------------------------------------------

void granite_layers(const Keys& k) {
  if (!k.reads()) {
    k.out()["layer_types"] = attending_types(k.draft());
    return;
  }
  attending_layers(k, layer_types(k, [](int64_t) -> std::string { return kLinear; }), "mamba2");
}

// Experts beside an MLP for all tokens, or that MLP alone.
void granite_mlps(const Keys& k) {
  Draft& d = k.draft();
  const char *const number = "num_local_experts", *const all = "shared_intermediate_size";
  const bool any = k.reads() ? k.in().integer(number, 8) > 0 : !d.dense();
  if (!any) {
    if (!k.reads()) k.out()[number] = 0;
    k.integer(all, "mlp.width", 1024);
    k.set("mlp.bias", false);
    k.ignored({"num_experts_per_tok", "router_aux_loss_coef", "intermediate_size"});
    return;
  }
  k.set("layers.mlp", "moe");
  experts(k, {.experts = number, .width = "intermediate_size"});
  const auto width = d.get("moe.width").get<int64_t>();
  if (!k.reads()) {
    k.out()[all] = width * d.get("moe.shared").get<int64_t>();
    return;
  }
  const int64_t given = k.in().integer(all, 1024);
  if (width < 1 || given < width || given % width != 0)
    k.in().refuse(all, "our shared experts are whole ones of intermediate_size, ", width);
  d.set("moe.shared", given / width);
}

// "rope" turns queries and keys; with nothing, or another word, there are no positions.
void granite_positions(const Keys& k) {
  const char* const key = "position_embedding_type";
  if (!k.reads()) {
    const bool turned = k.draft().get("attention.rotary") == true;
    k.out()[key] = turned ? Json("rope") : Json();
    if (turned) rope(k, {.base = 10000});
    return;
  }
  const std::string kind = k.in().text(key, "nope");
  if (kind == "rope") return rope(k, {.base = 10000});
  if (kind != "nope") k.in().refuse(key, "our layers know rope, nope here");
  k.set("attention.rotary", false);
  k.ignored({"rope_parameters", "rope_theta", "rope_scaling"});
}

void granite_own_keys(const Keys& k) {
  k.layers("num_hidden_layers", "mamba2");
  granite_layers(k);
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  granite_mlps(k);
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU, and the gate of our scan is silu");
  usual_heads(k, /*head_dim=*/false);
  k.truth("attention_bias", "attention.bias", false);
  granite_factors(k);
  granite_positions(k);
  mamba2_norm(k);
  mamba2_sizes(k, {});
  limits_of_steps(k);
  k.ignored({"layers_block_type", "normalization_function", "init_method"});
  passed_over(k);
}

void granite_keys(const Keys& k) {
  with_standards(k, {{"mamba_d_state", 256}, {"mamba_n_heads", 128}}, granite_own_keys);
}

void granite_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    const std::string mlp = ours + "mlp.", moe = theirs + "block_sparse_moe.";
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    m.linear(theirs + "post_attention_layernorm", ours + "mlp_norm");
    mixer_tensors(m, d.layers[i], theirs, ours);
    const bool routed = d.layers[i].mlp == "moe";
    const std::string own = routed ? mlp + "shared_expert." : mlp;
    m.add({{theirs + "shared_mlp.input_linear.weight"},
           {own + "gate_proj.weight", own + "up_proj.weight"}});
    m.linear(theirs + "shared_mlp.output_linear", own + "down_proj");
    if (!routed) continue;
    m.same(moe + "router.layer.weight", mlp + "router.weight");
    const int64_t n = m.shape(mlp + "experts.up_proj")[0];
    TensorRule in{{moe + "input_linear.weight"}, {mlp + "experts.gate_proj"}};
    in.ours.push_back(mlp + "experts.up_proj");
    TensorRule out{{moe + "output_linear.weight"}, {mlp + "experts.down_proj"}};
    in.groups = in.stack = out.stack = n;
    m.add(in);
    m.add(out);
  }
}

const RegisteredArchitecture bamba{{"bamba", "BambaForCausalLM", 1, bamba_keys, bamba_tensors}};
const RegisteredArchitecture granite{
    {"granitemoehybrid", "GraniteMoeHybridForCausalLM", 3, granite_keys, granite_tensors}};

}  // namespace
}  // namespace weft::train
