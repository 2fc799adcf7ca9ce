// gpt-oss: layers with a window and layers without in turn, a learned logit a head in the divisor
// of each softmax, YaRN, and experts of clamped SwiGLU with biases.
#include "core/text.h"
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"
#include "train/exchange/standards.h"

namespace weft::train {
namespace {

void own_keys(const Keys& k) {
  k.layers("num_hidden_layers", "attention");
  usual_model(k, /*tied=*/false);
  k.number("rms_norm_eps", "model.norm_eps", 1e-5);
  usual_heads(k);
  k.truth("attention_bias", "attention.bias", true);
  k.set("attention.sinks", true);
  window_by_layer(k, [](int64_t layer) { return layer % 2 == 0; });
  rope(k, {.base = 150000});
  k.fixed("hidden_act", "silu", "our experts are a clamped SwiGLU");
  k.set("layers.mlp", "moe");
  experts(k, {.experts = "num_local_experts", .width = "intermediate_size"});
  k.set("moe.bias", true);
  k.set("moe.activation", "clamped_swiglu");
  k.number("swiglu_alpha", "moe.alpha", 1.702);
  k.number("swiglu_limit", "moe.limit", 7.0);
  k.ignored({"experts_per_token", "initial_context_length"});
  k.dropouts({"attention_dropout"});
}

void keys(const Keys& k) {
  const Json yarn = {{"rope_type", "yarn"}, {"factor", 32.0},
                     {"beta_fast", 32.0},   {"beta_slow", 1.0},
                     {"truncate", false},   {"original_max_position_embeddings", 4096}};
  with_standards(k,
                 {{"num_experts_per_tok", 4},
                  {"num_key_value_heads", 8},
                  {"head_dim", 64},
                  {"sliding_window", 128},
                  {"max_position_embeddings", 131072},
                  {"rope_parameters", yarn}},
                 own_keys);
}

// One tensor holds the matrices of all experts, each [in, out], with gate and up in turn.
void expert_tensors(TensorMap& m, const std::string& theirs, const std::string& ours) {
  const Shape& up = m.shape(ours + "up_proj");
  TensorRule in{{theirs + "gate_up_proj"}, {ours + "gate_proj", ours + "up_proj"}};
  in.lies = Lies::transposed;
  in.groups = up[0] * up[1];
  in.stack = up[0];
  m.add(in);
  TensorRule bias{{theirs + "gate_up_proj_bias"}, {ours + "gate_bias", ours + "up_bias"}};
  bias.groups = in.groups;
  bias.stack = in.stack;
  bias.single = true;
  m.add(bias);
  TensorRule out{{theirs + "down_proj"}, {ours + "down_proj"}, Lies::transposed};
  out.stack = in.stack;
  m.add(out);
  m.same(theirs + "down_proj_bias", ours + "down_bias");
}

void tensors(const Draft& d, TensorMap& m) {
  decoder_tensors(
      d, m, /*out_bias=*/true,
      [](TensorMap& map, const DraftLayer&, const std::string& theirs, const std::string& ours) {
        map.linear(theirs + "mlp.router", ours + "router");
        expert_tensors(map, theirs + "mlp.experts.", ours + "experts.");
      });
  for (size_t i = 0; i < d.layers.size(); ++i)
    m.same(concat("model.layers.", i, ".self_attn.sinks"), concat("layers.", i, ".mixer.sinks"));
}

const RegisteredArchitecture registered{{"gpt_oss", "GptOssForCausalLM", 1, keys, tensors}};

}  // namespace
}  // namespace weft::train
