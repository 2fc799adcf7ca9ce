// Formats of flash-linear-attention: DeltaNet, Gated DeltaNet, KDA, GLA, RetNet, HGRN2 and linear
// attention, each also as a hybrid with softmax attention in some layers. Its mixers name their
// parameters as ours.
#include <algorithm>
#include <cmath>

#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// `attn`: which layers are attention, and how; null for none.
void hybrid(const Keys& k) {
  Draft& d = k.draft();
  if (!k.reads()) {
    Json layers = Json::array();
    for (size_t i = 0; i < d.layers.size(); ++i)
      if (d.layers[i].mixer == "attention") layers.push_back(i);
    if (layers.empty()) return;
    const Json window = d.get("attention.window");
    k.out()["attn"] = {{"layers", layers},
                       {"num_heads", d.get("attention.heads")},
                       {"num_kv_heads", d.get("attention.key_heads")},
                       {"qkv_bias", false},
                       {"window_size", window == 0 ? Json() : window},
                       {"rope_theta", d.get("attention.rotary_base")}};
    return;
  }
  if (!k.in().has("attn")) return;
  const Config attn = k.in().object("attn");
  const Json& layers = attn.at("layers");
  if (!layers.is_array()) attn.refuse("layers", "expected a list of layers");
  for (const Json& layer : layers) {
    if (!layer.is_number_integer() || layer < 0 || layer >= d.layers.size())
      attn.refuse("layers", "expected layers from 0 to ", d.layers.size() - 1);
    d.layers[layer.get<size_t>()].mixer = "attention";
  }
  const int64_t H = attn.integer("num_heads");
  d.set("attention.heads", H);
  d.set("attention.key_heads", attn.integer("num_kv_heads", H));
  d.set("attention.rotary_base", attn.number("rope_theta", 10000));
  if (attn.has("window_size")) d.set("attention.window", attn.integer("window_size"));
  if (attn.truth("qkv_bias", false))
    attn.refuse("qkv_bias", "its o_proj has no bias, and ours has");
  if (attn.truth("qk_norm", false)) attn.refuse("qk_norm", "expected false");
  for (const std::string& key : attn.unread()) attn.refuse(key, "our attention knows no such key");
}

// The whole part of e n, which no model is larger than.
int64_t whole(int64_t n, double e) {
  return static_cast<int64_t>(std::clamp(static_cast<double>(n) * e, 0.0, 1e9));
}

// hidden_ratio: what stands for intermediate_size where that is absent.
void common(const Keys& k, const std::string& mixer, double hidden_ratio = 4) {
  k.layers("num_hidden_layers", mixer.c_str());
  usual_model(k, /*tied=*/false);
  k.number("norm_eps", "model.norm_eps", 1e-6);
  hybrid(k);
  if (k.reads()) {
    k.draft().set(mixer + ".norm_eps", k.draft().get("model.norm_eps"));
    const int64_t least =
        whole(k.in().integer("hidden_size"), k.in().number("hidden_ratio", hidden_ratio) * 2 / 3);
    k.draft().set("mlp.width", k.in().integer("intermediate_size", 256 * ((least + 255) / 256)));
  } else {
    k.integer("intermediate_size", "mlp.width");
  }
  k.ignored({"conv_size", "hidden_ratio", "attn_mode", "fuse_norm", "fuse_swiglu",
             "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp"});
  k.fixed("hidden_act", "swish", "its MLP is SwiGLU");
  k.fixed("attnres_block_size", Json(), "our blocks have residual streams alone");
}

// What the delta rules have in common.
void delta_common(const Keys& k, const std::string& mixer) {
  common(k, mixer);
  if (k.reads()) {
    k.draft().set(mixer + ".conv",
                  k.in().truth("use_short_conv", true) ? k.in().integer("conv_size", 4) : 0);
  } else {
    const Json taps = k.draft().get(mixer + ".conv");
    k.out()["use_short_conv"] = taps != 0;
    if (taps != 0) k.out()["conv_size"] = taps;
  }
  k.truth("allow_neg_eigval", (mixer + ".negative_eigenvalues").c_str(), false);
}

// A factor e of a size n, whose whole part of e n is a width.
double factor(int64_t width, int64_t n) {
  double e = static_cast<double>(width) / static_cast<double>(n);
  while (static_cast<int64_t>(static_cast<double>(n) * e) < width) e = std::nextafter(e, 2 * e);
  return e;
}

// num_heads heads, and the widths of all together as multiples of the model's.
void expanded_sizes(const Keys& k, const std::string& mixer, int64_t heads, double expand_k,
                    double expand_v) {
  const std::string ours = mixer + ".";
  k.integer("num_heads", (ours + "heads").c_str(), heads);
  Draft& d = k.draft();
  const int64_t D = d.get("model.width").get<int64_t>();
  const Json given = d.get(ours + "heads");
  const int64_t H = given.is_null() ? 1 : given.get<int64_t>();
  for (const auto& [theirs, width, standard] :
       {std::tuple{"expand_k", ours + "key_width", expand_k},
        std::tuple{"expand_v", ours + "value_width", expand_v}}) {
    if (!k.reads()) {
      if (d.uses(mixer)) k.out()[theirs] = factor(H * d.get(width).get<int64_t>(), D);
      continue;
    }
    if (H < 1) k.in().refuse("num_heads", "expected at least one head");
    // Its factors are rounded to a whole width.
    const int64_t all = whole(D, k.in().number(theirs, standard) + 0.5 / static_cast<double>(D));
    if (all % H != 0) k.in().refuse(theirs, "its ", all, " columns are no whole heads of ", H);
    d.set(width, all / H);
  }
}

// What GLA, RetNet and linear attention have in common.
void linear_common(const Keys& k, const std::string& mixer) {
  const Json heads = k.reads() ? Json(k.in().integer("num_heads", k.draft().get(mixer + ".heads")))
                               : k.draft().get(mixer + ".heads");
  if (k.reads() && k.in().has("num_kv_heads"))
    k.fixed("num_kv_heads", heads, "keys that heads share have values and gates in common there");
  k.fixed("elementwise_affine", true, "our norms have weights");
}

void gla_keys(const Keys& k) {
  common(k, "gated_linear");
  expanded_sizes(k, "gated_linear", 4, 0.5, 1);
  linear_common(k, "gated_linear");
  k.set("gated_linear.gate_rank", 16);
  k.fixed("feature_map", Json(), "our q and k are projections");
  k.fixed("use_short_conv", false, "our GLA has no convolutions");
  k.fixed("use_output_gate", true, "our GLA has its gate");
  k.fixed("clamp_min", Json(), "our gates have no bound");
  k.ignored({"use_gk", "use_gv"});  // its layers do not look at them
}

void retnet_keys(const Keys& k) {
  common(k, "retention", /*hidden_ratio=*/2);
  expanded_sizes(k, "retention", 8, 1, 2);
  linear_common(k, "retention");
  k.set("retention.rotary_base", 10000.0);
  k.fixed("feature_map", Json(), "our q and k are projections");
  k.fixed("use_output_gate", true, "our retention has its gate");
  k.ignored({"use_short_conv"});  // its layers do not look at it
}

void linear_attn_keys(const Keys& k) {
  common(k, "linear_attention");
  expanded_sizes(k, "linear_attention", 4, 1, 1);
  linear_common(k, "linear_attention");
  k.named("feature_map", "linear_attention.feature_map",
          {{"elu", "elu1"}, {"relu", "relu"}, {"identity", "none"}}, "elementwise_product");
  k.fixed("tie_feature_map_qk", false, "our map is the same for q and k, and has no weights");
  for (const char* norm : {"norm_q", "norm_k"})
    k.fixed(norm, false, "our features are not divided by their sum");
  k.truth("norm_feature_map", "linear_attention.normalize", false);
  k.set("linear_attention.output_norm", true);
  k.set("linear_attention.eps", 1e-10);
}

// Its expand_ratio is the width of a head's keys; values are as wide as the model.
void hgrn2_keys(const Keys& k) {
  common(k, "hgrn2");
  k.fixed("use_lower_bound", false,
          "its bounds are learned for the whole model, and ours are numbers of the recipe");
  k.fixed("use_short_conv", false, "our HGRN2 has no convolutions");
  k.fixed("elementwise_affine", true, "our norms have weights");
  k.set("hgrn2.lower_bound", 0.0);
  k.set("hgrn2.norm_eps", 1e-5);  // whatever norm_eps is
  Draft& d = k.draft();
  if (!k.reads()) {
    k.integer("num_heads", "hgrn2.heads");
    return k.integer("expand_ratio", "hgrn2.key_width");
  }
  const int64_t D = k.in().integer("hidden_size");
  const bool given = k.in().has("expand_ratio") || !k.in().has("num_heads");
  const char* const key = given ? "expand_ratio" : "num_heads";
  const int64_t n = k.in().integer(key, 128);
  k.ignored({"num_heads"});  // a ratio goes before it
  if (n < 1 || n > D || D % (given ? D / n : n) != 0)
    k.in().refuse(key, "expected whole heads of a hidden_size of ", D);
  const int64_t H = given ? D / n : n;
  d.set("hgrn2.heads", H);
  d.set("hgrn2.key_width", given ? n : D / n);
  d.set("hgrn2.value_width", D / H);
}

void delta_net_keys(const Keys& k) {
  delta_common(k, "delta");
  k.truth("use_gate", "delta.use_gate", false);
  k.fixed("qk_norm", "l2", "our keys have length one");
  k.fixed("qk_activation", "silu", "our convolution ends in silu");
  k.fixed("use_beta", true, "our delta rule has its beta");
  k.fixed("use_output_norm", true, "our mixer ends in a norm");
  expanded_sizes(k, "delta", 16, 1, 1);
}

// Gated DeltaNet and KDA: num_heads of keys, num_v_heads of values.
void gated_sizes(const Keys& k, const std::string& mixer, double expand) {
  const std::string ours = mixer + ".";
  k.integer("head_dim", (ours + "key_width").c_str());
  Draft& d = k.draft();
  if (!k.reads()) {
    if (!d.uses(mixer)) return;
    k.integer("num_heads", (ours + "key_heads").c_str());
    k.integer("num_v_heads", (ours + "heads").c_str());
    k.out()["expand_v"] = factor(d.get(ours + "value_width").get<int64_t>(),
                                 d.get(ours + "key_width").get<int64_t>());
    return;
  }
  const int64_t H = k.in().integer("num_heads");
  d.set(ours + "key_heads", H);
  d.set(ours + "heads", k.in().integer("num_v_heads", H));
  d.set(ours + "value_width", whole(k.in().integer("head_dim"), k.in().number("expand_v", expand)));
}

void gated_deltanet_keys(const Keys& k) {
  delta_common(k, "gated_delta");
  k.truth("use_gate", "gated_delta.use_gate", true);
  if (k.reads() && k.in().text("output_gate_activation", "swish") != "silu")
    k.fixed("output_gate_activation", "swish", "our gate is silu");
  gated_sizes(k, "gated_delta", 2);
}

void kda_keys(const Keys& k) {
  delta_common(k, "kda");
  k.fixed("safe_gate", false, "our gate has no bounds");
  k.fixed("lower_bound", Json(), "our gate has no bounds");
  gated_sizes(k, "kda", 1);
}

// A gated norm that is not one kernel there (fuse_norm = false) has another name.
std::string attn_name(const std::string& attn, const std::string& name) {
  if (name != "g_norm_swish_gate.weight") return attn + name;
  return concat(attn, name, "|", attn, "g_norm.weight");
}

void tensors(const Draft& d, TensorMap& m) {
  m.same("model.embeddings.weight", "embedding.weight");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    m.linear(theirs + "attn_norm", ours + "mixer_norm");
    const std::string mixer = ours + "mixer.";
    for (const std::string& name : m.under(mixer))
      m.same(attn_name(theirs + "attn.", name.substr(mixer.size())), name,
             name.find("conv1d") == std::string::npos ? Lies::plain : Lies::conv);
    m.linear(theirs + "mlp_norm", ours + "mlp_norm");
    gated_mlp_tensors(m, theirs + "mlp.", ours + "mlp.");
  }
  m.linear("model.norm", "norm");
  m.head("lm_head.weight", "model.embeddings.weight");
}

const RegisteredArchitecture delta_net{
    {"delta_net", "DeltaNetForCausalLM", 1, delta_net_keys, tensors}};
const RegisteredArchitecture gated_deltanet{
    {"gated_deltanet", "GatedDeltaNetForCausalLM", 1, gated_deltanet_keys, tensors}};
const RegisteredArchitecture gla{{"gla", "GLAForCausalLM", 1, gla_keys, tensors}};
const RegisteredArchitecture retnet{{"retnet", "RetNetForCausalLM", 1, retnet_keys, tensors}};
const RegisteredArchitecture hgrn2{{"hgrn2", "HGRN2ForCausalLM", 1, hgrn2_keys, tensors}};
const RegisteredArchitecture linear_attn{
    {"linear_attn", "LinearAttentionForCausalLM", 1, linear_attn_keys, tensors}};
const RegisteredArchitecture kda{{"kda", "KDAForCausalLM", 1, kda_keys, tensors}};

}  // namespace
}  // namespace weft::train
