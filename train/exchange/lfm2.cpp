// LFM2: gated short convolutions, and attention with norms of q and k in some layers.
#include <algorithm>

#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"
#include "train/exchange/standards.h"

namespace weft::train {
namespace {

constexpr const char* kConv = "conv";

// Layers that attend: layer_types, or the older list of their numbers; all where neither is given.
void kinds(const Keys& k) {
  Draft& d = k.draft();
  if (!k.reads()) {
    Json types = Json::array();
    for (const DraftLayer& layer : d.layers)
      types.push_back(layer.mixer == "attention" ? kFull : kConv);
    k.out()["layer_types"] = types;
    return;
  }
  const char* const older = "full_attn_idxs";
  const Json at = k.in().has(older) ? k.in().at(older) : Json();
  if (!at.is_null() && !at.is_array()) k.in().refuse(older, "expected a list of layers");
  const auto types = layer_types(k, [&](int64_t i) -> std::string {
    const bool attends = at.is_null() || std::find(at.begin(), at.end(), Json(i)) != at.end();
    return attends ? kFull : kConv;
  });
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] != kFull && types[i] != kConv)
      k.in().refuse("layer_types", "this format has ", kConv, ", ", kFull);
    d.layers[i].mixer = types[i] == kFull ? "attention" : "gated_conv";
  }
}

// The width of the MLP may be given as one that is adjusted: two thirds of it, times a factor,
// rounded up to a multiple.
void mlp_width(const Keys& k) {
  const char* const adjusted = "block_auto_adjust_ff_dim";
  if (!k.reads()) {
    k.integer("intermediate_size", "mlp.width");
    k.out()[adjusted] = false;
    return;
  }
  const Config& c = k.in();
  int64_t width =
      c.has("block_ff_dim") ? c.integer("block_ff_dim") : c.integer("intermediate_size");
  c.ignore({"intermediate_size"});
  const double factor = c.number("block_ffn_dim_multiplier", 1.0);
  const int64_t multiple = c.integer("block_multiple_of", 256);
  constexpr int64_t kMost = 1 << 24;
  if (multiple < 1 || multiple > kMost) c.refuse("block_multiple_of", "expected 1 to ", kMost);
  if (c.truth(adjusted, true)) {
    if (width < 0 || width > kMost || factor < 0 || factor > 1e3)
      c.refuse(adjusted, "expected a width up to ", kMost, ", and a factor of it up to 1000");
    width = static_cast<int64_t>(factor * static_cast<double>(2 * width / 3));
    width = (width + multiple - 1) / multiple * multiple;
  }
  k.draft().set("mlp.width", width);
}

void own_keys(const Keys& k) {
  k.layers("num_hidden_layers", "gated_conv");
  kinds(k);
  usual_model(k, /*tied=*/true);
  if (k.reads() && k.in().has("tie_embedding"))
    k.draft().set("model.tied_embeddings", k.in().truth("tie_embedding"));
  k.number("norm_eps", "model.norm_eps", 1e-5);
  mlp_width(k);
  usual_heads(k);
  k.set("attention.qk_norm", true);
  rope(k, {.base = 1e6});
  k.integer("conv_L_cache", "gated_conv.conv", 3);
  k.truth("conv_bias", "gated_conv.bias", false);
  k.ignored({"block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale",
             "block_use_swiglu", "block_use_xavier_init", "conv_dim", "conv_dim_out",
             "conv_use_xavier_init", "use_pos_enc", "num_heads"});
}

void keys(const Keys& k) {
  with_standards(k, {{"num_key_value_heads", 8}, {"max_position_embeddings", 128000}}, own_keys);
}

void tensors(const Draft& d, TensorMap& m) {
  outer_tensors(m, "model.embedding_norm");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("model.layers.", i, "."), ours = concat("layers.", i, ".");
    const std::string mixer = ours + "mixer.", attn = theirs + "self_attn.";
    m.linear(theirs + "operator_norm", ours + "mixer_norm");
    m.linear(theirs + "ffn_norm", ours + "mlp_norm");
    for (const auto& [their, our] :
         {std::pair{"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}})
      m.linear(concat(theirs, "feed_forward.", their), concat(ours, "mlp.", our));
    if (d.layers[i].mixer == "attention") {
      for (const char* part : {"q_proj", "k_proj", "v_proj"}) m.linear(attn + part, mixer + part);
      m.linear(attn + "out_proj", mixer + "o_proj");
      m.linear(attn + "q_layernorm", mixer + "q_norm");
      m.linear(attn + "k_layernorm", mixer + "k_norm");
      continue;
    }
    m.linear(theirs + "conv.in_proj", mixer + "in_proj");
    m.linear(theirs + "conv.conv", mixer + "conv1d", Lies::conv);
    m.linear(theirs + "conv.out_proj", mixer + "out_proj");
  }
}

const RegisteredArchitecture registered{{"lfm2", "Lfm2ForCausalLM", 1, keys, tensors}};

}  // namespace
}  // namespace weft::train
