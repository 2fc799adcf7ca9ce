// Mamba, Falcon Mamba and Mamba-2: a norm and a mixer a layer, and no MLP. Jamba: Mamba with
// attention without positions in one layer of each period, and experts in every second MLP.
#include "train/exchange/architecture.h"
#include "train/exchange/mamba_parts.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// intermediate_size goes before expand times the width, as in transformers.
void inner_channels(const Keys& k, const std::string& ours) {
  const char *const inner = "intermediate_size", *const expand = "expand";
  if (!k.reads() || !k.in().has(inner)) return k.integer(expand, ours.c_str(), 2);
  const int64_t D = k.in().integer("hidden_size"), given = k.in().integer(inner);
  if (D < 1 || given % D != 0)
    k.in().refuse(inner, "our inner channels are a multiple of the hidden_size of ", D);
  k.draft().set(ours, given / D);
  k.ignored({expand});
}

// What Mamba and Mamba-2 have in common. Neither says how long a text may be.
void common(const Keys& k, const char* mixer, bool tied) {
  k.layers("num_hidden_layers", mixer);
  if (k.reads()) {
    k.draft().vocabulary = k.in().integer("vocab_size");
    k.draft().set("model.context", 2048);
  } else {
    k.out()["vocab_size"] = k.draft().vocabulary;
  }
  k.integer("hidden_size", "model.width");
  k.truth("tie_word_embeddings", "model.tied_embeddings", tied);
  k.set("layers.mlp", "none");
  const std::string ours = concat(mixer, ".");
  k.integer("state_size", (ours + "state").c_str());
  inner_channels(k, ours + "expand");
  k.integer("conv_kernel", (ours + "conv").c_str(), 4);
  k.fixed("use_bias", false, "our projections have no bias");
  k.fixed("use_conv_bias", true, "our convolution has a bias");
  k.fixed("hidden_act", "silu", "the gate of our scan is silu");
  k.ignored({"initializer_range", "residual_in_fp32", "rescale_prenorm_residual", "time_step_scale",
             "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme",
             "use_mambapy", "use_associative_scan", "d_model", "d_inner", "n_layer", "ssm_cfg",
             "fused_add_norm", "rms_norm", "pad_vocab_size_multiple", "chunk_size"});
}

// A rank that may be "auto", a sixteenth of the width.
void rank(const Keys& k, const char* theirs) {
  if (!k.reads() || (k.in().has(theirs) && k.in().at(theirs) != "auto"))
    return k.integer(theirs, "mamba.dt_rank");
  k.draft().set("mamba.dt_rank", (k.in().integer("hidden_size") + 15) / 16);
}

void mamba_keys(const Keys& k) {
  common(k, "mamba", /*tied=*/true);
  k.number("layer_norm_epsilon", "model.norm_eps", 1e-5);
  rank(k, "time_step_rank");
}

void falcon_mamba_keys(const Keys& k) {
  mamba_keys(k);
  k.set("mamba.inner_norms", true);
  k.set("mamba.inner_norm_weights", false);
  k.number("mixer_rms_eps", "mamba.inner_norm_eps", 1e-6);
  k.ignored({"use_falcon_mambapy"});
}

void mamba2_keys(const Keys& k) {
  common(k, "mamba2", /*tied=*/false);
  k.number("layer_norm_epsilon", "model.norm_eps", 1e-5);
  if (k.reads()) k.draft().set("mamba2.norm_eps", k.draft().get("model.norm_eps"));
  k.integer("head_dim", "mamba2.head_dim", 64);
  k.integer("n_groups", "mamba2.groups", 8);
  limits_of_steps(k);
  k.fixed("norm_before_gate", false, "our gate stands before the norm");
  k.ignored({"time_step_rank"});
  const Json D = k.draft().get("model.width"), expand = k.draft().get("mamba2.expand"),
             P = k.draft().get("mamba2.head_dim");
  if (P.is_null() || P == 0) return;
  const int64_t heads = D.get<int64_t>() * expand.get<int64_t>() / P.get<int64_t>();
  k.fixed("num_heads", heads, "expand * hidden_size / head_dim of them");
}

void stack_tensors(const Draft& d, TensorMap& m) {
  m.same("backbone.embeddings.weight|backbone.embedding.weight", "embedding.weight");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("backbone.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "norm", ours + "mixer_norm");
    mamba_tensors(m, theirs + "mixer.", ours + "mixer.");
  }
  m.linear("backbone.norm_f", "norm");
  m.head("lm_head.weight", "backbone.embeddings.weight");
}

// Which layers are of a kind: those at `offset` of each `period`.
struct Period {
  int64_t period = 1, offset = 0;
};

// The period of layers for which `of` holds, if they have one.
Period period_of(const Draft& d, const std::function<bool(const DraftLayer&)>& of) {
  std::vector<int64_t> at;
  const auto n = static_cast<int64_t>(d.layers.size());
  for (int64_t i = 0; i < n; ++i)
    if (of(d.layers[static_cast<size_t>(i)])) at.push_back(i);
  if (at.empty()) return {n + 1, n};
  if (at.size() == 1) return {n, at[0]};
  return {at[1] - at[0], at[0]};
}

Period read_period(const Keys& k, const std::string& kind, Period standard) {
  const std::string period = kind + "_layer_period", offset = kind + "_layer_offset";
  const Period p{k.in().integer(period, standard.period), k.in().integer(offset, standard.offset)};
  if (p.period < 1) k.in().refuse(period, "expected at least 1");
  return p;
}

void jamba_layers(const Keys& k) {
  Draft& d = k.draft();
  const auto attends = [](const DraftLayer& l) { return l.mixer == "attention"; };
  const auto routes = [](const DraftLayer& l) { return l.mlp == "moe"; };
  if (!k.reads()) {
    const Period a = period_of(d, attends), e = period_of(d, routes);
    Json& out = k.out();
    out["attn_layer_period"] = a.period;
    out["attn_layer_offset"] = a.offset;
    out["expert_layer_period"] = e.period;
    out["expert_layer_offset"] = e.offset;
    return;
  }
  const Period a = read_period(k, "attn", {8, 4}), e = read_period(k, "expert", {2, 1});
  const bool experts = k.in().integer("num_experts", 16) > 1;
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    d.layers[i].mixer = layer % a.period == a.offset ? "attention" : "mamba";
    d.layers[i].mlp = experts && layer % e.period == e.offset ? "moe" : "swiglu";
  }
}

void jamba_keys(const Keys& k) {
  k.layers("num_hidden_layers", "mamba");
  jamba_layers(k);
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  usual_heads(k, /*head_dim=*/false);
  k.set("attention.rotary", false);
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU");
  if (k.draft().dense()) k.integer("intermediate_size", "mlp.width");
  experts(k, {.experts = "num_experts", .width = "intermediate_size", .normalize = false});
  k.integer("mamba_d_state", "mamba.state", 16);
  k.integer("mamba_d_conv", "mamba.conv", 4);
  k.integer("mamba_expand", "mamba.expand", 2);
  rank(k, "mamba_dt_rank");
  k.set("mamba.inner_norms", true);
  k.fixed("mamba_conv_bias", true, "our convolution has a bias");
  k.fixed("mamba_proj_bias", false, "our projections have no bias");
  k.fixed("sliding_window", Json(), "Jamba's attention sees all");
  k.ignored({"use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep",
             "mamba_inner_layernorms", "layers_block_type", "layers_num_experts", "layer_types"});
  k.dropouts({"attention_dropout"});
}

void jamba_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m, "model.final_layernorm");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    mixer_tensors(m, d.layers[i], theirs, ours);
    m.linear(theirs + "pre_ff_layernorm", ours + "mlp_norm");
    const std::string mlp = theirs + "feed_forward.";
    if (d.layers[i].mlp != "moe") {
      gated_mlp_tensors(m, mlp, ours + "mlp.");
      continue;
    }
    m.same(mlp + "router.weight", ours + "mlp.router.weight");
    for (const std::string part : {"gate_proj", "up_proj", "down_proj"})
      m.experts(concat(mlp, "experts.{}.", part, ".weight"), ours + "mlp.experts." + part);
  }
}

const RegisteredArchitecture mamba{{"mamba", "MambaForCausalLM", 1, mamba_keys, stack_tensors}};
const RegisteredArchitecture falcon_mamba{
    {"falcon_mamba", "FalconMambaForCausalLM", 1, falcon_mamba_keys, stack_tensors}};
const RegisteredArchitecture mamba2{{"mamba2", "Mamba2ForCausalLM", 1, mamba2_keys, stack_tensors}};
const RegisteredArchitecture jamba{{"jamba", "JambaForCausalLM", 1, jamba_keys, jamba_tensors}};

}  // namespace
}  // namespace weft::train
