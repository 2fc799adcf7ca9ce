// Lines that architectures with Mamba or Mamba-2 share.
#pragma once

#include "train/exchange/keys.h"
#include "train/exchange/tensor_map.h"

namespace weft::train {

// What a format calls the sizes of Mamba-2.
struct Mamba2Names {
  const char* state = "mamba_d_state";
  const char* heads = "mamba_n_heads";
  const char* head_dim = "mamba_d_head";  // a number, or "auto"
  const char* groups = "mamba_n_groups";
  const char* conv = "mamba_d_conv";
  const char* expand = "mamba_expand";
  const char* conv_bias = "mamba_conv_bias";
  const char* bias = "mamba_proj_bias";
  // The key of the inner channels, where they need be no multiple of the width; "" where they must
  // be `expand` times the width; null where heads and head_dim say how many there are.
  const char* inner = "";
  int64_t inner_standard = 0;  // where config.json has no such key; null there is no standard
};
void mamba2_sizes(const Keys& k, const Mamba2Names& names);

// time_step_limit, [least, most] of a step of Mamba-2.
void limits_of_steps(const Keys& k);

// The norm of Mamba-2 has the eps of the others, which config.json gives once.
void mamba2_norm(const Keys& k);
// What hybrids with Mamba-2 have in config.json and no logit depends on.
void passed_over(const Keys& k);

// The tensors of Mamba or Mamba-2; norms inside it where ours has them.
void mamba_tensors(TensorMap& m, const std::string& theirs, const std::string& ours);
// Those of a layer's mixer, which is attention or Mamba, under a layer's own prefixes.
void mixer_tensors(TensorMap& m, const DraftLayer& layer, const std::string& theirs,
                   const std::string& ours);

// The two norms of a layer and its MLP, as Bamba names them.
void prenorm_tensors(TensorMap& m, const std::string& theirs, const std::string& ours);

// Which layers attend: full_attention on the list, and linear_attention is `mixer`. Older names of
// kinds are known too.
void attending_layers(const Keys& k, const std::vector<std::string>& types, const char* mixer);
// The list for the layers that there are.
Json attending_types(const Draft& d);

}  // namespace weft::train
