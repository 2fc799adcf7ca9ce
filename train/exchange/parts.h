// Lines that architectures share: sizes, heads, rotary positions, windows, and the tensors that
// belong to them.
#pragma once

#include "train/exchange/keys.h"
#include "train/exchange/tensor_map.h"

namespace weft::train {

// What config.json calls the layers that look at a window, and the others.
inline constexpr const char *kSliding = "sliding_attention", *kFull = "full_attention",
                            *kLinear = "linear_attention";

// vocab_size, hidden_size, max_position_embeddings, initializer_range, tie_word_embeddings.
void usual_model(const Keys& k, bool tied);
// num_attention_heads, num_key_value_heads, head_dim (where the format has that key).
void usual_heads(const Keys& k, bool head_dim = true);
// Rotary positions of the layers of attention for which `of` holds, in the new spelling
// (rope_parameters) and the old one (rope_theta, rope_scaling, partial_rotary_factor).
struct Rope {
  double base = 10000;
  double fraction = 1;
  bool interleaved = false;
};
void rope(const Keys& k, const Rope& standard);
// A factor that both formats write alike, for Keys::number.
inline double itself(double x) { return x; }
// Granite's factors on embeddings, branches and scores, and what divides its logits.
void granite_factors(const Keys& k);
// Two kinds of layers of attention with rotary positions of their own (Gemma 3).
void ropes_by_kind(const Keys& k, double local_base, double global_base);
// Mixtures of experts: how many, how many a token meets, their width, and the weight of the loss
// that balances them. In transformers that loss is top_k where all are met alike, and here 1.
struct Experts {
  const char* experts = "num_experts";
  const char* width = "intermediate_size";
  bool normalize = true;
  double balance = 0.001;  // where config.json has no router_aux_loss_coef
};
void experts(const Keys& k, const Experts& names);
// decoder_sparse_step and mlp_only_layers: which MLPs are experts, as in Qwen's models, and then
// their keys; with `shared` an expert for all tokens, behind a gate.
void qwen_experts(const Keys& k, bool shared, bool normalize);
// The tensors of experts as Mixtral names them: gate, and experts of w1, w3, w2.
void mixtral_expert_tensors(TensorMap& m, const std::string& theirs, const std::string& ours);
// The tensors of an MLP that is dense or has experts, as Qwen names them.
void qwen_mlp_tensors(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
                      const std::string& ours);
// sliding_window, for all layers; null for none.
void window_of_all(const Keys& k);
// sliding_window and layer_types. `standard` says which layers slide where layer_types is absent.
void window_by_layer(const Keys& k, const std::function<bool(int64_t layer)>& slides);

// layer_types of n layers: as given, with the older names of kinds; else `standard` of each layer.
std::vector<std::string> layer_types(const Keys& k,
                                     const std::function<std::string(int64_t layer)>& standard);

// q_proj, k_proj, v_proj, o_proj, and q_norm, k_norm where ours has them. Without `out_bias` theirs
// has no bias of o_proj, whatever it has of the others.
void attention_tensors(TensorMap& m, const std::string& theirs, const std::string& ours,
                       bool out_bias = true);
// gate_proj, up_proj, down_proj.
void gated_mlp_tensors(TensorMap& m, const std::string& theirs, const std::string& ours);
// A whole decoder of Llama's kind; `mlp` puts the tensors of a layer's MLP.
using PutMlp = void (*)(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
                        const std::string& ours);
void decoder_tensors(const Draft& d, TensorMap& m, bool out_bias, PutMlp mlp);
// A whole Llama.
void llama_tensors(const Draft& d, TensorMap& m);
// model.embed_tokens, model.norm (or another name of it), lm_head.
void outer_tensors(TensorMap& m, const std::string& norm = "model.norm");

}  // namespace weft::train
