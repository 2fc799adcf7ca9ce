#include "train/exchange/mamba_parts.h"

#include <cmath>

#include "core/text.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

// A size that products may be made of.
int64_t size_of(const Config& c, const char* key, std::optional<int64_t> standard = {}) {
  const int64_t size = c.integer(key, standard);
  constexpr int64_t kMost = 1 << 24;
  if (size < 1 || size > kMost) c.refuse(key, "expected 1 to ", kMost);
  return size;
}

// "auto" is what makes the heads as wide together as the inner channels.
int64_t head_dim_of(const Keys& k, const Mamba2Names& names, int64_t heads, int64_t inner) {
  const Config& c = k.in();
  if (c.has(names.head_dim) && c.at(names.head_dim) != "auto") return size_of(c, names.head_dim);
  if (inner % heads != 0)
    c.refuse(names.heads, "they do not divide the ", inner, " inner channels evenly");
  return inner / heads;
}

void read_heads(const Keys& k, const Mamba2Names& names) {
  const Config& c = k.in();
  const int64_t D = size_of(c, "hidden_size"), heads = size_of(c, names.heads);
  const bool named = names.inner && names.inner[0] != '\0';
  const bool null = named && c.all().contains(names.inner) && !c.has(names.inner);
  const int64_t inner = named && !null ? size_of(c, names.inner, names.inner_standard)
                                       : D * size_of(c, names.expand, 2);
  const int64_t P = head_dim_of(k, names, heads, inner);
  c.ignore({names.expand});
  if (names.inner && heads * P != inner)
    c.refuse(names.heads, "heads of width ", P, " have ", heads * P, " channels, expected ", inner);
  k.draft().set("mamba2.head_dim", P);
  if (heads * P % D == 0)
    k.draft().set("mamba2.expand", heads * P / D);
  else
    k.draft().set("mamba2.heads", heads);
}

void write_heads(const Keys& k, const Mamba2Names& names) {
  const Json P = k.draft().get("mamba2.head_dim"), D = k.draft().get("model.width");
  if (P.is_null() || P == 0) return;
  const auto wide = P.get<int64_t>();
  const Json own = k.draft().get("mamba2.heads"), expand = k.draft().get("mamba2.expand");
  const bool counted = !own.is_null() && own != 0;
  const int64_t factor = expand.is_null() ? 2 : expand.get<int64_t>();
  const int64_t heads = counted ? own.get<int64_t>() : D.get<int64_t>() * factor / wide;
  k.out()[names.heads] = heads;
  k.out()[names.head_dim] = wide;
  if (!names.inner) return;
  k.out()[names.expand] = factor;
  if (names.inner[0] != '\0') k.out()[names.inner] = heads * wide;
}

}  // namespace

void mamba2_sizes(const Keys& k, const Mamba2Names& names) {
  if (k.reads())
    read_heads(k, names);
  else
    write_heads(k, names);
  k.integer(names.state, "mamba2.state");
  k.integer(names.groups, "mamba2.groups", 1);
  k.integer(names.conv, "mamba2.conv", 4);
  k.fixed(names.conv_bias, true, "our convolution has a bias");
  k.fixed(names.bias, false, "our projections have no bias");
}

// Infinity has no one spelling in JSON.
void limits_of_steps(const Keys& k) {
  const char* const key = "time_step_limit";
  const Json infinity = {{"__float__", "Infinity"}};
  if (!k.reads()) {
    const Json least = k.draft().get("mamba2.step_least"), most = k.draft().get("mamba2.step_most");
    if (least.is_null()) return;
    k.out()[key] = {least.get<double>(), most == 0 ? infinity : most};
    return;
  }
  if (!k.in().has(key)) return;
  const Json& limit = k.in().at(key);
  const auto number = [&](const Json& j) {
    if (j == infinity) return HUGE_VAL;
    if (!j.is_number()) k.in().refuse(key, "expected two numbers, the least and the largest step");
    return j.get<double>();
  };
  if (!limit.is_array() || limit.size() != 2)
    k.in().refuse(key, "expected two numbers, the least and the largest step");
  const double least = number(limit[0]), most = number(limit[1]);
  if (least < 0 || least > most || most == 0)
    k.in().refuse(key, "expected a least step of 0 or more, and a largest that is not below it");
  if (least > 0) k.draft().set("mamba2.step_least", least);
  if (most < 1e300) k.draft().set("mamba2.step_most", most);
}

void mamba2_norm(const Keys& k) {
  if (k.reads()) k.draft().set("mamba2.norm_eps", k.draft().get("model.norm_eps"));
}

void passed_over(const Keys& k) {
  k.ignored({"num_logits_to_keep", "mamba_chunk_size", "chunk_size", "use_mamba_kernels",
             "rescale_prenorm_residual", "residual_in_fp32", "time_step_max", "time_step_floor",
             "mamba_ssm_cache_dtype"});
  k.dropouts({"attention_dropout", "hidden_dropout"});
}

void prenorm_tensors(TensorMap& m, const std::string& theirs, const std::string& ours) {
  m.linear(theirs + "input_layernorm", ours + "mixer_norm");
  m.linear(theirs + "pre_ff_layernorm", ours + "mlp_norm");
  gated_mlp_tensors(m, theirs + "feed_forward.", ours + "mlp.");
}

void mamba_tensors(TensorMap& m, const std::string& theirs, const std::string& ours) {
  for (const char* part : {"in_proj", "x_proj", "dt_proj", "out_proj", "norm", "dt_layernorm",
                           "b_layernorm", "c_layernorm"})
    if (m.has(concat(ours, part, ".weight"))) m.linear(theirs + part, ours + part);
  m.linear(theirs + "conv1d", ours + "conv1d", Lies::conv);
  for (const char* part : {"A_log", "D", "dt_bias"})
    if (m.has(ours + part)) m.same(theirs + part, ours + part);
}

void mixer_tensors(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
                   const std::string& ours) {
  if (layer.mixer == "attention")
    attention_tensors(m, theirs + "self_attn.", ours + "mixer.");
  else
    mamba_tensors(m, theirs + "mamba.", ours + "mixer.");
}

void attending_layers(const Keys& k, const std::vector<std::string>& types, const char* mixer) {
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] != kFull && types[i] != kLinear)
      k.in().refuse("layer_types", "this format has ", kLinear, ", ", kFull);
    k.draft().layers[i].mixer = types[i] == kFull ? "attention" : mixer;
  }
}

Json attending_types(const Draft& d) {
  Json types = Json::array();
  for (const DraftLayer& layer : d.layers)
    types.push_back(layer.mixer == "attention" ? kFull : kLinear);
  return types;
}

}  // namespace weft::train
