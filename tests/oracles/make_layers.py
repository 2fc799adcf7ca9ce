"""Whole mixers with small random weights: how a family's projections, norms and gates are wired.
Oracles: transformers' and fla's modules.  fla's modules call GPU kernels; here the names of those
kernels mean fla's own reference functions, and the wiring stays theirs."""

import torch
import transformers
from transformers import (Gemma3TextConfig, LlamaConfig, Mamba2Config, MambaConfig, MixtralConfig,
                          Qwen3NextConfig, masking_utils)
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, causal_conv1d_fn
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from common import in_fp64, version, without_fla
from layer_files import attend, layer

with without_fla():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from fla_on_cpu import fla

HF, FLA = version(transformers, torch) + ": transformers.models.", version(fla, torch) + ": fla.layers."


# Modules of transformers, as they are.

layer("mamba", HF + "mamba.modeling_mamba.MambaMixer",
      MambaMixer(MambaConfig(hidden_size=8, state_size=3, expand=2, conv_kernel=4, time_step_rank=2,
                             num_hidden_layers=1), 0),
      lambda call, x: call(x), 2, 17, 8,
      {"width": 8, "state": 3, "expand": 2, "conv": 4, "dt_rank": 2})

for name, groups in (("mamba2", 1), ("mamba2_groups", 2)):
    layer(name, HF + "mamba2.modeling_mamba2.Mamba2Mixer",
          Mamba2Mixer(Mamba2Config(hidden_size=8, num_heads=4, head_dim=4, state_size=3, n_groups=groups,
                                   expand=2, conv_kernel=4, chunk_size=8, layer_norm_epsilon=1e-5,
                                   num_hidden_layers=1), 0),
          lambda call, x: call(x), 1, 17, 8,
          {"width": 8, "heads": 4, "head_width": 4, "state": 3, "groups": groups, "expand": 2, "conv": 4,
           "eps": 1e-5})

layer("qwen3_next_gated_delta_net", HF + "qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet",
      Qwen3NextGatedDeltaNet(Qwen3NextConfig(
          hidden_size=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=4,
          linear_value_head_dim=3, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, num_hidden_layers=1,
          layer_types=["linear_attention"]), 0),
      lambda call, x: call(x), 1, 17, 8,
      {"width": 8, "heads": 4, "key_heads": 2, "key_width": 4, "value_width": 3, "conv": 4, "eps": 1e-6})


config = LlamaConfig(hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
                     rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                     attn_implementation="eager")
with in_fp64():
    rotary = modeling_llama.LlamaRotaryEmbedding(config)
layer("llama_attention", HF + "llama.modeling_llama.LlamaAttention",
      modeling_llama.LlamaAttention(config, 0),
      lambda call, x: attend(call, x, masking_utils.causal_mask_function, rotary), 2, 17, 12,
      {"width": 12, "heads": 4, "key_heads": 2, "head_width": 4, "base": 10000.0})

gemma = Gemma3TextConfig(hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
                         query_pre_attn_scalar=4, sliding_window=5, num_hidden_layers=1, rms_norm_eps=1e-6,
                         layer_types=["sliding_attention"], attn_implementation="eager")
layer("gemma3_sliding_attention", HF + "gemma3.modeling_gemma3.Gemma3Attention, sliding; "
      "rotary tables of Llama; q_norm and k_norm multiply by 1 + weight",
      modeling_gemma3.Gemma3Attention(gemma, 0),
      lambda call, x: attend(call, x, masking_utils.sliding_window_causal_mask_function(5), rotary),
      1, 17, 12, {"width": 12, "heads": 4, "key_heads": 2, "head_width": 4, "base": 10000.0, "window": 5,
                  "eps": 1e-6})

layer("mixtral_moe", HF + "mixtral.modeling_mixtral.MixtralSparseMoeBlock; gate_up_proj: gate rows, then up",
      MixtralSparseMoeBlock(MixtralConfig(hidden_size=6, intermediate_size=5, num_local_experts=4,
                                          num_experts_per_tok=2, num_hidden_layers=1)).eval(),
      lambda call, x: call(x), 1, 17, 6, {"width": 6, "inner": 5, "experts": 4, "top_k": 2})

# Modules of fla, on its reference functions.

NAIVE = ", kernels replaced by fla's reference functions"


def fla_layer(name, where, make, options, T=17, D=12, B=1):
    with in_fp64():
        module = make()
    layer(name, FLA + where + NAIVE, module, lambda call, x: call(x)[0], B, T, D, {"width": D, **options})


fla_layer("fla_gated_linear_attention", "gla.GatedLinearAttention",
          lambda: fla.layers.gla.GatedLinearAttention(hidden_size=12, num_heads=2, gate_low_rank_dim=3),
          {"heads": 2, "key_width": 3, "value_width": 6, "gate_rank": 3, "gate_temperature": 16.0,
           "eps": 1e-5})
fla_layer("fla_gated_delta_net", "gated_deltanet.GatedDeltaNet",
          lambda: fla.layers.gated_deltanet.GatedDeltaNet(hidden_size=12, head_dim=4, num_heads=2, expand_v=2),
          {"heads": 2, "key_width": 4, "value_width": 8, "conv": 4, "eps": 1e-5})
fla_layer("fla_gated_delta_net_groups", "gated_deltanet.GatedDeltaNet",
          lambda: fla.layers.gated_deltanet.GatedDeltaNet(
              hidden_size=8, head_dim=4, num_heads=1, num_v_heads=2, expand_v=1, allow_neg_eigval=True),
          {"heads": 2, "key_heads": 1, "key_width": 4, "value_width": 4, "conv": 4, "eps": 1e-5,
           "beta_two": True}, D=8)
fla_layer("fla_delta_net", "delta_net.DeltaNet",
          lambda: fla.layers.delta_net.DeltaNet(hidden_size=12, num_heads=2),
          {"heads": 2, "key_width": 6, "value_width": 6, "conv": 4, "eps": 1e-5})
fla_layer("fla_kda", "kda.KimiDeltaAttention",
          lambda: fla.layers.kda.KimiDeltaAttention(hidden_size=12, head_dim=4, num_heads=2, expand_v=1.5),
          {"heads": 2, "key_width": 4, "value_width": 6, "gate_rank": 6, "conv": 4, "eps": 1e-5})
fla_layer("fla_kda_groups", "kda.KimiDeltaAttention",
          lambda: fla.layers.kda.KimiDeltaAttention(
              hidden_size=8, head_dim=4, num_heads=1, num_v_heads=2, allow_neg_eigval=True),
          {"heads": 2, "key_heads": 1, "key_width": 4, "value_width": 4, "gate_rank": 4, "conv": 4,
           "eps": 1e-5, "beta_two": True}, D=8)
fla_layer("fla_retention", "multiscale_retention.MultiScaleRetention",
          lambda: fla.layers.multiscale_retention.MultiScaleRetention(hidden_size=8, num_heads=2),
          {"heads": 2, "key_width": 4, "value_width": 8, "base": 10000.0, "eps": 1e-5}, D=8)
fla_layer("fla_linear_attention", "linear_attn.LinearAttention",
          lambda: fla.layers.linear_attn.LinearAttention(hidden_size=12, num_heads=2, feature_map="elu",
                                                         do_feature_map_norm=True),
          {"heads": 2, "key_width": 6, "value_width": 6, "normalize": True, "eps": 1e-10, "norm_eps": 1e-5})
