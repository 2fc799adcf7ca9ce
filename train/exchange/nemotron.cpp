// Nemotron-H: Mamba-2, softmax attention without positions and MLPs, each of them a layer there.
#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/mamba_parts.h"
#include "train/exchange/parts.h"
#include "train/exchange/standards.h"

namespace weft::train {
namespace {

// The kinds of their layers: a list, or a letter each.
std::vector<std::string> types_of(const Config& c) {
  const char *const list = "layers_block_type", *const letters = "hybrid_override_pattern";
  if (c.has(list) || c.has("layer_types")) {
    c.ignore({letters});
    return c.texts(c.has(list) ? list : "layer_types");
  }
  std::vector<std::string> types;
  for (const char letter : c.text(letters)) {
    if (letter == 'M')
      types.push_back(kLinear);
    else if (letter == '*')
      types.push_back(kFull);
    else if (letter == '-')
      types.push_back("mlp");
    else
      c.refuse(letters, "our layers know M, * and - here");
  }
  return types;
}

// An MLP belongs to the mixer before it; a mixer before another has none.
void layers_of(const Keys& k) {
  Draft& d = k.draft();
  if (!k.reads()) {
    Json types = Json::array();
    for (const DraftLayer& layer : d.layers) {
      types.push_back(layer.mixer == "attention" ? kFull : kLinear);
      if (layer.mlp != "none") types.push_back("mlp");
    }
    k.out()["num_hidden_layers"] = types.size();
    k.out()["layers_block_type"] = types;
    return;
  }
  for (const std::string& type : types_of(k.in())) {
    const bool attends = type == kFull || type == "attention";
    if (attends || type == kLinear || type == "mamba") {
      DraftLayer layer;
      layer.mixer = attends ? "attention" : "mamba2";
      layer.mlp = "none";
      d.layers.push_back(layer);
      continue;
    }
    const char* const key = k.in().has("layers_block_type") ? "layers_block_type" : "layer_types";
    if (type != "mlp") k.in().refuse(key, "our layers know ", kLinear, ", ", kFull, ", mlp here");
    if (d.layers.empty() || d.layers.back().mlp != "none")
      k.in().refuse(k.in().has("hybrid_override_pattern") ? "hybrid_override_pattern" : key,
                    "an MLP stands behind a mixer in our blocks, and here one does not");
    d.layers.back().mlp = "relu2";
  }
  if (d.layers.empty()) k.in().refuse("layers_block_type", "expected at least one layer");
  k.ignored({"num_hidden_layers"});
}

void own_keys(const Keys& k) {
  layers_of(k);
  usual_model(k, /*tied=*/false);
  k.number("layer_norm_epsilon", "model.norm_eps", 1e-5);
  if (k.draft().dense()) k.integer("intermediate_size", "mlp.width");
  k.ignored({"intermediate_size"});
  k.named("mlp_hidden_act", "layers.mlp",
          {{"relu2", "relu2"}, {"gelu", "gelu"}, {"gelu_pytorch_tanh", "gelu_tanh"}}, "relu2");
  k.truth("mlp_bias", "mlp.bias", false);
  usual_heads(k);
  if (k.reads() && !k.in().has("head_dim"))
    k.draft().set("attention.head_dim", k.in().integer("attention_head_dim", 128));
  k.ignored({"attention_head_dim"});
  k.set("attention.rotary", false);
  k.fixed("attention_bias", false, "Nemotron-H has no bias of q, k, v and o");
  k.fixed("mamba_hidden_act", "silu", "the gate of our scan is silu");
  mamba2_norm(k);
  mamba2_sizes(k, {.state = "ssm_state_size",
                   .heads = "mamba_num_heads",
                   .head_dim = "mamba_head_dim",
                   .groups = "n_groups",
                   .conv = "conv_kernel",
                   .expand = "expand",
                   .conv_bias = "use_conv_bias",
                   .bias = "use_bias",
                   .inner = nullptr});
  // transformers reads no other limit.
  k.number("time_step_min", "mamba2.step_least", 0.001);
  passed_over(k);
  k.ignored({"time_step_limit", "mamba_proj_bias", "sliding_window", "n_routed_experts",
             "n_shared_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
             "moe_latent_size", "moe_shared_expert_overlap", "num_experts_per_tok",
             "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob",
             "mtp_layers_block_type", "mtp_hybrid_override_pattern", "time_step_rank", "rope_theta",
             "rope_parameters"});
  k.fixed("num_nextn_predict_layers", 0, "our models predict one token");
}

void keys(const Keys& k) {
  with_standards(k,
                 {{"num_key_value_heads", 8},
                  {"max_position_embeddings", 4096},
                  {"ssm_state_size", 128},
                  {"mamba_num_heads", 128},
                  {"mamba_head_dim", 64},
                  {"n_groups", 8}},
                 own_keys);
}

void tensors(const Draft& d, TensorMap& m) {
  m.same("backbone.embeddings.weight", "embedding.weight");
  size_t n = 0;  // of their layers
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string ours = concat("layers.", i, "."), theirs = concat("backbone.layers.", n, ".");
    m.linear(theirs + "norm", ours + "mixer_norm");
    if (d.layers[i].mixer == "attention")
      attention_tensors(m, theirs + "mixer.", ours + "mixer.");
    else
      mamba_tensors(m, theirs + "mixer.", ours + "mixer.");
    ++n;
    if (d.layers[i].mlp == "none") continue;
    const std::string mlp = concat("backbone.layers.", n++, ".");
    m.linear(mlp + "norm", ours + "mlp_norm");
    m.linear(mlp + "mixer.up_proj", ours + "mlp.fc1");
    m.linear(mlp + "mixer.down_proj", ours + "mlp.fc2");
  }
  m.linear("backbone.norm_f", "norm");
  m.head("lm_head.weight", "backbone.embeddings.weight");
  m.left_out("mtp.*");
}

const RegisteredArchitecture registered{{"nemotron_h", "NemotronHForCausalLM", 2, keys, tensors}};

}  // namespace
}  // namespace weft::train
