// Lines of config.json that many architectures have: sizes, heads, rotary positions, windows.
#include "train/exchange/parts.h"

#include <algorithm>
#include <cmath>

#include "core/text.h"

namespace weft::train {

void usual_model(const Keys& k, bool tied) {
  if (k.reads())
    k.draft().vocabulary = k.in().integer("vocab_size");
  else
    k.out()["vocab_size"] = k.draft().vocabulary;
  k.integer("hidden_size", "model.width");
  k.integer("max_position_embeddings", "model.context", 2048);
  k.number("initializer_range", "model.init", 0.02);
  k.truth("tie_word_embeddings", "model.tied_embeddings", tied);
}

void granite_factors(const Keys& k) {
  k.number("embedding_multiplier", "model.embedding_scale", 1, itself);
  k.number("residual_multiplier", "model.branch_scale", 1, itself);
  k.number("attention_multiplier", "attention.scale", 1, itself);
  k.number("logits_scaling", "model.logit_scale", 1, [](double x) { return 1 / x; });
}

void usual_heads(const Keys& k, bool head_dim) {
  k.integer("num_attention_heads", "attention.heads");
  if (k.reads()) {
    const int64_t H = k.in().integer("num_attention_heads");
    if (H < 1) k.in().refuse("num_attention_heads", "expected at least one head");
    k.draft().set("attention.key_heads", k.in().integer("num_key_value_heads", H));
    const int64_t D = k.in().integer("hidden_size");
    const bool given = head_dim && k.in().has("head_dim");
    if (!given && D % H != 0)
      k.in().refuse("num_attention_heads", "they do not divide the hidden_size of ", D, " evenly");
    k.draft().set("attention.head_dim", given ? k.in().integer("head_dim") : D / H);
    return;
  }
  k.integer("num_key_value_heads", "attention.key_heads");
  if (head_dim) k.integer("head_dim", "attention.head_dim");
}

namespace {

using Which = std::function<bool(const DraftLayer&)>;

bool is_attention(const DraftLayer& layer) { return layer.mixer == "attention"; }

// The keys of a table of rotary positions that only some kinds have.
constexpr const char* kStretched[] = {"factor", "original_max_position_embeddings"};

// A table of rotary positions, as the keys of a layer.
Json read_rope(const Config& table, const Config& outer, const Rope& standard, double base) {
  Json keys = {{"rotary_base", table.number("rope_theta", base)}};
  const double fraction = table.number("partial_rotary_factor", standard.fraction);
  if (fraction != 1) keys["rotary_fraction"] = fraction;
  if (standard.interleaved) keys["rotary_interleaved"] = true;
  const char* const name = table.has("rope_type") ? "rope_type" : "type";
  table.ignore({"rope_type", "type"});
  const std::string type = table.text(name, "default");
  if (type == "default") {
    table.ignore({kStretched[0], kStretched[1]});
    return keys;
  }
  static const std::vector<std::string> known = {"linear", "llama3", "yarn"};
  if (!contains(known, type)) table.refuse(name, "our positions know default, ", joined(known));
  keys["rotary_scaling"] = type;
  keys["rotary_factor"] = table.number("factor");
  if (type == "linear") return keys;
  const int64_t context = outer.integer("max_position_embeddings", 2048);
  keys["rotary_context"] = table.integer("original_max_position_embeddings", context);
  if (type == "llama3") {
    keys["rotary_slow"] = table.number("low_freq_factor");
    keys["rotary_fast"] = table.number("high_freq_factor");
    return keys;
  }
  keys["rotary_slow"] = table.number("beta_slow", 1);
  keys["rotary_fast"] = table.number("beta_fast", 32);
  keys["rotary_truncate"] = table.truth("truncate", true);
  if (table.has("mscale") && table.has("mscale_all_dim") && !table.has("attention_factor"))
    table.refuse("mscale", "our YaRN knows attention_factor, or 0.1 ln(factor) + 1");
  table.ignore({"mscale", "mscale_all_dim"});
  if (table.has("attention_factor")) keys["rotary_magnitude"] = table.number("attention_factor");
  return keys;
}

// The same the other way round.
Json written_rope(const Json& keys) {
  const std::string type = keys.value("rotary_scaling", "none");
  Json table = {{"rope_type", type == "none" ? "default" : type},
                {"rope_theta", keys.value("rotary_base", 10000.0)}};
  if (keys.value("rotary_fraction", 1.0) != 1)
    table["partial_rotary_factor"] = keys.at("rotary_fraction");
  const auto copy = [&](const char* theirs, const char* ours) {
    if (keys.contains(ours)) table[theirs] = keys.at(ours);
  };
  if (type == "none") return table;
  copy("factor", "rotary_factor");
  if (type == "linear") return table;
  copy("original_max_position_embeddings", "rotary_context");
  if (type == "llama3") {
    copy("low_freq_factor", "rotary_slow");
    copy("high_freq_factor", "rotary_fast");
    return table;
  }
  // What is not the standard.
  const double magnitude = 0.1 * std::log(keys.at("rotary_factor").get<double>()) + 1;
  if (keys.value("rotary_slow", 1.0) != 1) copy("beta_slow", "rotary_slow");
  if (keys.value("rotary_fast", 32.0) != 32) copy("beta_fast", "rotary_fast");
  if (!keys.value("rotary_truncate", true)) copy("truncate", "rotary_truncate");
  if (keys.value("rotary_magnitude", magnitude) != magnitude)
    copy("attention_factor", "rotary_magnitude");
  return table;
}

// rope_scaling, or else rope_parameters; `kind` is the part for one kind of layers. In transformers
// too the older key goes before the newer.
Config rope_table(const Config& c, const char* kind = nullptr) {
  if (c.has("rope_scaling")) {
    c.ignore({"rope_parameters"});
    return c.object("rope_scaling");
  }
  if (!c.has("rope_parameters")) return {Json::object(), c.where()};
  const Config all = c.object("rope_parameters");
  if (!kind) return all;
  all.ignore({kFull, kSliding});
  for (const std::string& key : all.unread())
    all.refuse(key, "expected ", kFull, " and ", kSliding, ", each with its positions");
  return all.has(kind) ? all.object(kind) : Config(Json::object(), all.where());
}

void require_read(const Config& table) {
  for (const std::string& key : table.unread()) table.refuse(key, "our positions know no such key");
}

void apply(Draft& d, const Json& keys, const Which& of) {
  for (DraftLayer& layer : d.layers)
    if (is_attention(layer) && of(layer)) layer.keys.update(keys);
}

Json first_keys(const Draft& d, const Which& of) {
  for (const DraftLayer& layer : d.layers)
    if (is_attention(layer) && of(layer) && layer.keys.value("rotary", true)) return layer.keys;
  return {};
}

// `table` is a copy: `out` moves its values when it gets more of them.
void write_old_spelling(Json& out, Json table, double fraction) {
  out["rope_theta"] = table.at("rope_theta");
  Json scaling = table;
  scaling.erase("rope_theta");
  scaling.erase("partial_rotary_factor");
  out["rope_scaling"] = table.at("rope_type") == "default" ? Json() : scaling;
  if (table.contains("partial_rotary_factor") || fraction != 1)
    out["partial_rotary_factor"] = table.value("partial_rotary_factor", 1.0);
}

bool slides(const DraftLayer& layer) { return layer.keys.value("window", 0) > 0; }
bool sees_all(const DraftLayer& layer) { return !slides(layer); }

}  // namespace

void rope(const Keys& k, const Rope& standard) {
  const auto turned = [](const DraftLayer& layer) { return layer.keys.value("rotary", true); };
  if (k.reads()) {
    const Config table = rope_table(k.in());
    Rope given = standard;
    given.fraction = k.in().number("partial_rotary_factor", standard.fraction);
    const double base = k.in().number("rope_theta", standard.base);
    apply(k.draft(), read_rope(table, k.in(), given, base), turned);
    return require_read(table);
  }
  const Json keys = first_keys(k.draft(), turned);
  if (keys.is_null()) return;
  k.out()["rope_parameters"] = written_rope(keys);
  write_old_spelling(k.out(), k.out()["rope_parameters"], standard.fraction);
}

void ropes_by_kind(const Keys& k, double local_base, double global_base) {
  if (k.reads()) {
    const Config& c = k.in();
    const bool old = c.has("rope_scaling") || !c.has("rope_parameters");
    const Config full = rope_table(c, kFull);
    const Config sliding = old ? Config(Json::object(), c.where()) : rope_table(c, kSliding);
    const double global = c.number("rope_theta", global_base),
                 local = c.number("rope_local_base_freq", local_base);
    apply(k.draft(), read_rope(full, c, {}, global), sees_all);
    apply(k.draft(), read_rope(sliding, c, {}, local), slides);
    require_read(full);
    return require_read(sliding);
  }
  const Json global = first_keys(k.draft(), sees_all), local = first_keys(k.draft(), slides);
  Json& out = k.out();
  const Json standard = {{"rope_type", "default"}, {"rope_theta", global_base}};
  out["rope_parameters"][kFull] = global.is_null() ? standard : written_rope(global);
  out["rope_parameters"][kSliding] =
      local.is_null() ? Json{{"rope_type", "default"}, {"rope_theta", local_base}}
                      : written_rope(local);
  write_old_spelling(out, out["rope_parameters"][kFull], 1);
  const Json base = out["rope_parameters"][kSliding]["rope_theta"];
  out["rope_local_base_freq"] = base;
}

namespace {

// The number of experts has two names, of which a file has one.
const char* experts_key(const Keys& k, const char* usual) {
  if (!k.reads() || k.in().has(usual)) return usual;
  for (const char* other : {"num_experts", "num_local_experts"})
    if (k.in().has(other)) return other;
  return usual;
}

}  // namespace

void experts(const Keys& k, const Experts& names) {
  const char* const number = experts_key(k, names.experts);
  const bool any = std::any_of(k.draft().layers.begin(), k.draft().layers.end(),
                               [](const DraftLayer& layer) { return layer.mlp == "moe"; });
  k.ignored({"router_aux_loss_coef", "num_experts_per_tok", number});
  if (!any) {
    if (!k.reads()) k.out()[names.experts] = 1;
    return;
  }
  k.integer(number, "moe.experts");
  k.integer("num_experts_per_tok", "moe.top_k", 2);
  k.integer(names.width, "moe.width");
  k.set("moe.normalize", names.normalize);
  k.set("moe.z_loss", 0.0);
  const double top_k = k.draft().get("moe.top_k").get<double>();
  if (k.reads())
    k.draft().set("moe.balance_loss", k.in().number("router_aux_loss_coef", names.balance) * top_k);
  else
    k.out()["router_aux_loss_coef"] = k.draft().get("moe.balance_loss").get<double>() / top_k;
}

namespace {

// The step at which layers have experts: those whose number, from 1 on, is a multiple of it, and no
// others. 0 where there is no such step.
int64_t step_of_experts(const std::vector<DraftLayer>& layers) {
  const auto n = static_cast<int64_t>(layers.size());
  for (int64_t step = 1; step <= n; ++step) {
    bool all = true;
    for (int64_t i = 0; i < n; ++i)
      all = all && (layers[static_cast<size_t>(i)].mlp == "moe") == ((i + 1) % step == 0);
    if (all) return step;
  }
  return 0;
}

// Layers whose MLP is dense: those of mlp_only_layers, and all but every decoder_sparse_step-th.
void sparse_layers(const Keys& k) {
  Draft& d = k.draft();
  if (!k.reads()) {
    const int64_t step = step_of_experts(d.layers);
    Json dense = Json::array();
    for (size_t i = 0; step == 0 && i < d.layers.size(); ++i)
      if (d.layers[i].mlp != "moe") dense.push_back(i);
    k.out()["mlp_only_layers"] = dense;
    k.out()["decoder_sparse_step"] = std::max<int64_t>(1, step);
    return;
  }
  const int64_t step = k.in().integer("decoder_sparse_step", 1);
  if (step < 1) k.in().refuse("decoder_sparse_step", "expected at least 1");
  const Json dense = k.in().has("mlp_only_layers") ? k.in().at("mlp_only_layers") : Json::array();
  if (!dense.is_array()) k.in().refuse("mlp_only_layers", "expected a list of layers");
  const bool any = k.in().integer(experts_key(k, "num_experts"), 1) > 0;
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const bool named = std::find(dense.begin(), dense.end(), Json(i)) != dense.end();
    const bool sparse = any && !named && (static_cast<int64_t>(i) + 1) % step == 0;
    d.layers[i].mlp = sparse ? "moe" : "swiglu";
  }
}

}  // namespace

void qwen_experts(const Keys& k, bool shared, bool normalize) {
  sparse_layers(k);
  Draft& d = k.draft();
  if (d.dense()) k.integer("intermediate_size", "mlp.width");
  k.ignored({"intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
             "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob",
             "router_aux_loss_coef"});
  const bool any = std::any_of(d.layers.begin(), d.layers.end(),
                               [](const DraftLayer& layer) { return layer.mlp == "moe"; });
  if (!any) return;
  experts(k, {.experts = "num_experts", .width = "moe_intermediate_size"});
  k.truth("norm_topk_prob", "moe.normalize", normalize);
  if (!shared) return;
  k.set("moe.shared_gate", true);
  const auto width = d.get("moe.width").get<int64_t>();
  const char* const all = "shared_expert_intermediate_size";
  if (!k.reads()) {
    k.out()[all] = width * d.get("moe.shared").get<int64_t>();
    return;
  }
  const int64_t given = k.in().integer(all);
  if (width < 1 || given < width || given % width != 0)
    k.in().refuse(all, "our shared experts are whole ones of moe_intermediate_size, ", width);
  d.set("moe.shared", given / width);
}

void mixtral_expert_tensors(TensorMap& m, const std::string& theirs, const std::string& ours) {
  m.same(theirs + "gate.weight", ours + "router.weight");
  m.experts(theirs + "experts.{}.w1.weight", ours + "experts.gate_proj");
  m.experts(theirs + "experts.{}.w3.weight", ours + "experts.up_proj");
  m.experts(theirs + "experts.{}.w2.weight", ours + "experts.down_proj");
}

void qwen_mlp_tensors(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
                      const std::string& ours) {
  if (layer.mlp != "moe") return gated_mlp_tensors(m, theirs, ours);
  m.same(theirs + "gate.weight", ours + "router.weight");
  for (const std::string part : {"gate_proj", "up_proj", "down_proj"})
    m.experts(concat(theirs, "experts.{}.", part, ".weight"), ours + "experts." + part);
  if (!m.has(ours + "shared_expert.up_proj.weight")) return;
  gated_mlp_tensors(m, theirs + "shared_expert.", ours + "shared_expert.");
  m.linear(theirs + "shared_expert_gate", ours + "shared_expert_gate");
}

void window_of_all(const Keys& k) {
  if (k.reads()) {
    if (!k.in().has("sliding_window")) return;
    const int64_t window = k.in().integer("sliding_window");
    if (window < 1) k.in().refuse("sliding_window", "expected at least 1, or null for none");
    return k.draft().set("attention.window", window);
  }
  const Json window = k.draft().get("attention.window");
  k.out()["sliding_window"] = window == 0 ? Json() : window;
}

std::vector<std::string> layer_types(const Keys& k,
                                     const std::function<std::string(int64_t)>& standard) {
  const auto n = static_cast<int64_t>(k.draft().layers.size());
  std::vector<std::string> types;
  if (!k.in().has("layer_types")) {
    for (int64_t i = 0; i < n; ++i) types.push_back(standard(i));
    return types;
  }
  types = k.in().texts("layer_types");
  if (static_cast<int64_t>(types.size()) != n)
    k.in().refuse("layer_types", "it names ", types.size(), " layers, and there are ", n);
  for (std::string& type : types) {
    if (type == "attention") type = kFull;
    if (type == "mamba") type = kLinear;
  }
  return types;
}

void window_by_layer(const Keys& k, const std::function<bool(int64_t)>& slides_at) {
  Draft& d = k.draft();
  if (k.reads()) {
    const auto types =
        layer_types(k, [&](int64_t i) -> std::string { return slides_at(i) ? kSliding : kFull; });
    const bool any = contains(types, kSliding);
    const int64_t window = any ? k.in().integer("sliding_window") : 0;
    if (any && window < 1) k.in().refuse("sliding_window", "expected at least 1");
    k.ignored({"sliding_window"});
    for (size_t i = 0; i < types.size(); ++i) {
      if (types[i] != kSliding && types[i] != kFull)
        k.in().refuse("layer_types", "our layers of attention know ", kSliding, ", ", kFull);
      if (types[i] == kSliding) d.layers[i].keys["window"] = window;
    }
    return;
  }
  Json types = Json::array(), window;
  for (const DraftLayer& layer : d.layers) {
    types.push_back(slides(layer) ? kSliding : kFull);
    if (window.is_null() && slides(layer)) window = layer.keys.at("window");
  }
  k.out()["layer_types"] = types;
  k.out()["sliding_window"] = window;
}

void attention_tensors(TensorMap& m, const std::string& theirs, const std::string& ours,
                       bool out_bias) {
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) m.linear(theirs + part, ours + part);
  const std::string bias = ours + "o_proj.bias";
  if (out_bias || !m.has(bias)) {
    m.linear(theirs + "o_proj", ours + "o_proj");
  } else {
    m.same(theirs + "o_proj.weight", ours + "o_proj.weight");
    m.zero(bias);
  }
  for (const char* norm : {"q_norm", "k_norm"})
    if (m.has(ours + norm + ".weight")) m.linear(theirs + norm, ours + norm);
}

void gated_mlp_tensors(TensorMap& m, const std::string& theirs, const std::string& ours) {
  for (const char* part : {"gate_proj", "up_proj", "down_proj"})
    m.linear(theirs + part, ours + part);
}

void decoder_tensors(const Draft& d, TensorMap& m, bool out_bias, PutMlp mlp) {
  outer_tensors(m);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "input_layernorm", ours + "mixer_norm");
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.", out_bias);
    m.linear(theirs + "post_attention_layernorm", ours + "mlp_norm");
    mlp(m, d.layers[i], theirs, ours + "mlp.");
  }
}

void outer_tensors(TensorMap& m, const std::string& norm) {
  m.same("model.embed_tokens.weight", "embedding.weight");
  m.linear(norm, "norm");
  m.head("lm_head.weight", "model.embed_tokens.weight");
  m.left_out("*rotary_emb.inv_freq");
}

}  // namespace weft::train
