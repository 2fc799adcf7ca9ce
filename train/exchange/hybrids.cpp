// Hybrids of softmax attention with a mixer that keeps a state: MiniMax-01 (Lightning attention),
// Qwen3-Next and OLMo-Hybrid (Gated DeltaNet).
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// layer_types: linear_attention is `mixer`, full_attention is attention.
void kinds(const Keys& k, const char* mixer, const std::function<bool(int64_t)>& attends) {
  Draft& d = k.draft();
  if (!k.reads()) {
    Json types = Json::array();
    for (const DraftLayer& layer : d.layers)
      types.push_back(layer.mixer == "attention" ? kFull : kLinear);
    k.out()["layer_types"] = types;
    return;
  }
  const auto types =
      layer_types(k, [&](int64_t i) -> std::string { return attends(i) ? kFull : kLinear; });
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] != kFull && types[i] != kLinear)
      k.in().refuse("layer_types", "this format has ", kLinear, ", ", kFull);
    d.layers[i].mixer = types[i] == kFull ? "attention" : mixer;
  }
}

// A factor that three keys say, of full attention, of Lightning attention and of the MLP.
void factor(const Keys& k, const std::string& greek, const char* ours) {
  const std::string first = concat("full_attn_", greek, "_factor");
  k.number(first.c_str(), ours, 1.0);
  const Json value = k.draft().get(ours);
  for (const std::string part : {"linear_attn_", "mlp_"})
    k.fixed(concat(part, greek, "_factor").c_str(), value,
            "our blocks have one factor for all their parts");
}

void minimax_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  kinds(k, "lightning", [](int64_t i) { return i % 2 == 0; });
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-5);
  k.set("layers.norms", "residual");
  k.set("layers.mlp", "moe");
  factor(k, "alpha", "model.skip_scale");
  factor(k, "beta", "model.branch_scale");
  usual_heads(k);
  rope(k, {.base = 10000});
  k.fixed("hidden_act", "silu", "our experts are SwiGLU");
  experts(k, {.experts = "num_local_experts", .width = "intermediate_size"});
  if (k.reads()) {
    const int64_t H = k.in().integer("num_attention_heads");
    const int64_t K = k.in().integer("head_dim", k.in().integer("hidden_size") / H);
    for (const char* key : {"lightning.heads", "lightning.key_heads"}) k.draft().set(key, H);
    for (const char* key : {"lightning.key_width", "lightning.value_width"}) k.draft().set(key, K);
    k.fixed("rotary_dim", K, "all columns of a head turn");
  } else if (!k.draft().uses("attention")) {
    k.integer("num_attention_heads", "lightning.heads");
    k.integer("head_dim", "lightning.key_width");
  }
  k.set("lightning.norm_eps", 1e-6);
  k.fixed("sliding_window", Json(), "MiniMax' attention sees all");
  k.ignored({"block_size", "router_jitter_noise", "attn_type_list", "postnorm",
             "shared_intermediate_size", "shared_moe_mode"});
  k.dropouts({"attention_dropout"});
}

void minimax_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    const std::string mixer = ours + "mixer.", attn = theirs + "self_attn.";
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    if (d.layers[i].mixer == "attention") {
      attention_tensors(m, attn, mixer);
    } else {
      m.add({{attn + "qkv_proj.weight"},
             {mixer + "q_proj.weight", mixer + "k_proj.weight", mixer + "v_proj.weight"},
             Lies::plain,
             d.layers[i].keys.value("heads", int64_t{1})});
      for (const char* part : {"output_gate", "out_proj", "norm"})
        m.linear(attn + part, mixer + part);
    }
    m.linear(theirs + "post_attention_layernorm", ours + "mlp_norm");
    mixtral_expert_tensors(m, theirs + "block_sparse_moe.", ours + "mlp.");
  }
  for (const char* buffer : {"*.slope_rate", "*.query_decay", "*.key_decay", "*.diagonal_decay"})
    m.left_out(buffer);
}

// linear_num_value_heads, linear_num_key_heads, linear_key_head_dim, linear_value_head_dim,
// linear_conv_kernel_dim.
void delta_sizes(const Keys& k) {
  k.integer("linear_num_value_heads", "gated_delta.heads");
  k.integer("linear_num_key_heads", "gated_delta.key_heads");
  k.integer("linear_key_head_dim", "gated_delta.key_width");
  k.integer("linear_value_head_dim", "gated_delta.value_width");
  k.integer("linear_conv_kernel_dim", "gated_delta.conv", 4);
}

void qwen3_next_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  const int64_t interval = k.reads() ? k.in().integer("full_attention_interval", 4) : 4;
  kinds(k, "gated_delta", [=](int64_t i) { return interval > 0 && (i + 1) % interval == 0; });
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  if (k.reads()) k.draft().set("gated_delta.norm_eps", k.draft().get("model.norm_eps"));
  k.set("model.norm_plus_one", true);
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  k.set("attention.output_gate", true);
  rope(k, {.base = 10000, .fraction = 0.25});
  delta_sizes(k);
  qwen_experts(k, /*shared=*/true, /*normalize=*/true);
  k.dropouts({"attention_dropout"});
}

void qwen3_next_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    const std::string mixer = ours + "mixer.", linear = theirs + "linear_attn.";
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    if (d.layers[i].mixer == "attention") {
      attention_tensors(m, theirs + "self_attn.", mixer);
    } else {
      const auto groups = d.layers[i].keys.value("key_heads", int64_t{1});  // each with its values
      const auto names = [&](const std::vector<std::string>& parts) {
        std::vector<std::string> all;
        for (const std::string& part : parts) all.push_back(mixer + part + ".weight");
        return all;
      };
      m.add({{linear + "in_proj_qkvz.weight"},
             names({"q_proj", "k_proj", "v_proj", "g_proj"}),
             Lies::plain,
             groups});
      m.add({{linear + "in_proj_ba.weight"}, names({"b_proj", "a_proj"}), Lies::plain, groups});
      m.add({{linear + "conv1d.weight"}, names({"q_conv1d", "k_conv1d", "v_conv1d"}), Lies::conv});
      for (const char* part : {"A_log", "dt_bias"}) m.same(linear + part, mixer + part);
      m.linear(linear + "norm", mixer + "o_norm");
      m.linear(linear + "out_proj", mixer + "o_proj");
    }
    m.linear(theirs + "post_attention_layernorm", ours + "mlp_norm");
    qwen_mlp_tensors(m, d.layers[i], theirs + "mlp.", ours + "mlp.");
  }
  m.left_out("mtp.*");
}

void olmo_hybrid_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  const auto last = static_cast<int64_t>(k.draft().layers.size()) - 1;
  kinds(k, "gated_delta", [=](int64_t i) { return i % 4 == 3 || (last < 3 && i == last); });
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-6);
  k.integer("intermediate_size", "mlp.width");
  k.fixed("hidden_act", "silu", "our MLP is SwiGLU");
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", false);
  k.set("attention.qk_norm", true);
  k.set("attention.qk_norm_whole", true);
  bool turned = k.draft().get("attention.rotary") == true;
  if (k.reads()) {
    for (DraftLayer& layer : k.draft().layers)
      layer.norms = layer.mixer == "attention" ? "post" : "pre";
    // Versions of transformers differ in what no table means.
    if (!k.in().has("rope_parameters"))
      k.in().refuse("rope_parameters",
                    "expected a table whose rope_theta is a number, or null for ", "no positions");
    turned = k.in().object("rope_parameters").has("rope_theta");
    if (!turned) k.set("attention.rotary", false);
  } else if (!turned) {
    k.out()["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", nullptr}};
  }
  if (turned) rope(k, {.base = 10000});
  delta_sizes(k);
  k.truth("linear_allow_neg_eigval", "gated_delta.negative_eigenvalues", true);
  k.set("gated_delta.norm_eps", 1e-5);
  k.ignored({"linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max",
             "linear_dt_init_floor"});
  k.dropouts({"attention_dropout"});
}

void olmo_hybrid_tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    const std::string mixer = ours + "mixer.", linear = theirs + "linear_attn.";
    gated_mlp_tensors(m, theirs + "mlp.", ours + "mlp.");
    if (d.layers[i].mixer == "attention") {
      attention_tensors(m, theirs + "self_attn.", mixer);
      // transformers saves this norm under the name that it has in the other layers.
      m.same(concat(theirs, "post_attention_layernorm.weight|", theirs,
                    "feedforward_layer_norm.weight"),
             ours + "mixer_post_norm.weight");
      m.linear(theirs + "post_feedforward_layernorm", ours + "mlp_post_norm");
      continue;
    }
    m.linear(theirs + "attention_layer_norm", ours + "mixer_norm");
    m.linear(theirs + "feedforward_layer_norm", ours + "mlp_norm");
    for (const char* part :
         {"q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj", "o_norm"})
      m.linear(linear + part, mixer + part);
    for (const char* part : {"A_log", "dt_bias"}) m.same(linear + part, mixer + part);
    // transformers saves the three in equal parts, whatever their sizes are.
    TensorRule conv{.lies = Lies::conv, .uneven = true};
    for (const std::string part : {"q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight"}) {
      conv.theirs.push_back(linear + part);
      conv.ours.push_back(mixer + part);
    }
    m.add(conv);
  }
}

const RegisteredArchitecture minimax{
    {"minimax", "MiniMaxForCausalLM", 1, minimax_keys, minimax_tensors}};
const RegisteredArchitecture qwen3_next{
    {"qwen3_next", "Qwen3NextForCausalLM", 1, qwen3_next_keys, qwen3_next_tensors}};
const RegisteredArchitecture olmo_hybrid{
    {"olmo_hybrid", "OlmoHybridForCausalLM", 1, olmo_hybrid_keys, olmo_hybrid_tensors}};

}  // namespace
}  // namespace weft::train
