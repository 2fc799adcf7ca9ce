"""Tiny models with random weights in the format of transformers: config.json, model.safetensors and
the logits of some tokens (expected.h5), each in a folder hub/NAME.  `weft import` reads them.
A model has every kind of layer that its format has, is longer than its window, and has odd sizes."""

import json
import os
import shutil
import sys

import torch
import transformers

from common import HERE, Random, i32, in_fp64, version, without_fla, write

with without_fla():
    import transformers.models.qwen3_next.modeling_qwen3_next  # noqa: F401
    import transformers.models.olmo_hybrid.modeling_olmo_hybrid  # noqa: F401

VOCABULARY, ROWS, TOKENS = 11, 2, 13
CLASSES, CONFIGS = {"GPT2": "GPT2LMHeadModel"}, {"Gemma3": "Gemma3TextConfig"}


def draw(model, name):
    """Not a training start: every term shall matter."""
    r = Random("hub weights " + name)
    for n, p in model.named_parameters():
        last = n.split(".")[-1]
        if last == "A_log":
            w = r.uniform(*p.shape, low=-1.0, high=1.5)
        elif p.dim() == 1:
            w = r.normal(*p.shape, scale=0.5)
        else:
            w = r.normal(*p.shape, scale=p.shape[-1] ** -0.5)
        p.data = w


def hub(name, kind, library=transformers, **config):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return
    folder = os.path.join(HERE, "hub", name)
    shutil.rmtree(folder, ignore_errors=True)
    make = getattr(library, CLASSES.get(kind, kind + "ForCausalLM"))
    configuration = getattr(library, CONFIGS.get(kind, kind + "Config"))
    common = dict(vocab_size=VOCABULARY, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    with in_fp64():
        lm = make(configuration(**common, **config, attn_implementation="eager",
                                experts_implementation="eager")).double()
        lm.train(library is not transformers)  # fla takes other kernels outside of training
        draw(lm, name)
        tokens = Random("hub " + name).integers(VOCABULARY, ROWS, TOKENS)
        with torch.no_grad():
            logits = lm(input_ids=tokens, use_cache=False).logits
        assert logits.dtype == torch.float64
    lm.save_pretrained(folder)
    extra = os.path.join(folder, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)
    source = version(library, torch) + f": {library.__name__}.{make.__name__}"
    write(os.path.join(folder, "expected.h5"), {"source": source},
          {"inputs": {"tokens": i32(tokens)}, "outputs": {"logits": logits}})
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    assert size <= 60 * 1024, (name, size)
    print(f"{name}: {size} bytes")


LLAMA = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=6, rms_norm_eps=1e-5, max_position_embeddings=64)

hub("llama", "Llama", **LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_position_embeddings=16))
hub("llama_yarn", "Llama", **LLAMA, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="yarn", rope_theta=20.0, factor=4.0,
                         original_max_position_embeddings=16))
hub("mistral", "Mistral", **LLAMA, sliding_window=4, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
QWEN = {**LLAMA, "num_hidden_layers": 3}
hub("qwen2", "Qwen2", **{**QWEN, "hidden_size": 12}, tie_word_embeddings=True,
    use_sliding_window=True, sliding_window=5, max_window_layers=1,
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
hub("qwen3", "Qwen3", **QWEN, tie_word_embeddings=False, use_sliding_window=False,
    rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=2.0))

hub("gpt2", "GPT2", n_embd=8, n_layer=2, n_head=2, n_positions=17)
BY_KIND = {"sliding_attention": dict(rope_type="default", rope_theta=10.0),
           "full_attention": dict(rope_type="linear", rope_theta=100.0, factor=8.0)}
hub("gemma3_text", "Gemma3", hidden_size=8, intermediate_size=12, num_hidden_layers=6,
    num_attention_heads=2, num_key_value_heads=1, head_dim=6, query_pre_attn_scalar=5, sliding_window=4,
    max_position_embeddings=64, final_logit_softcapping=3.0, rope_parameters=BY_KIND)
hub("cohere2", "Cohere2", hidden_size=8, intermediate_size=12, num_hidden_layers=5,
    num_attention_heads=2, num_key_value_heads=1, sliding_window=4, logit_scale=0.25,
    attention_bias=True, max_position_embeddings=64,
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
hub("olmo2", "Olmo2", hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
hub("granite", "Granite", hidden_size=8, intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, embedding_multiplier=12.0, logits_scaling=4.0,
    residual_multiplier=0.22, attention_multiplier=0.3, max_position_embeddings=64,
    tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=50.0))

hub("mamba", "Mamba", hidden_size=8, state_size=3, num_hidden_layers=2, time_step_rank=2)
hub("mamba2", "Mamba2", hidden_size=8, state_size=3, num_hidden_layers=2, head_dim=4, num_heads=4,
    n_groups=2, tie_word_embeddings=False, chunk_size=8, layer_norm_epsilon=1e-3)
hub("jamba", "Jamba", hidden_size=8, intermediate_size=6, num_hidden_layers=5, num_attention_heads=2,
    num_key_value_heads=1, attn_layer_period=5, attn_layer_offset=2, expert_layer_period=2,
    expert_layer_offset=1, num_experts=3, num_experts_per_tok=2, mamba_d_state=3, mamba_dt_rank=2)
hub("falcon_mamba", "FalconMamba", hidden_size=8, state_size=3, num_hidden_layers=2, time_step_rank=2,
    mixer_rms_eps=1e-2)
ATTENTION = dict(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=1,
                 max_position_embeddings=64)
MAMBA2 = dict(mamba_n_heads=4, mamba_n_groups=2, mamba_d_state=3, mamba_chunk_size=8)
hub("bamba", "Bamba", **ATTENTION, **MAMBA2, num_hidden_layers=3, attn_layer_indices=[1], mlp_bias=True,
    rope_parameters=dict(rope_type="default", rope_theta=50.0), time_step_limit=(0.3, 1.1))
GRANITE = dict(embedding_multiplier=12.0, logits_scaling=4.0, residual_multiplier=0.22,
               attention_multiplier=0.3, layer_types=["linear_attention", "full_attention"],
               num_hidden_layers=2, shared_intermediate_size=10)
hub("granite_hybrid", "GraniteMoeHybrid", **{**ATTENTION, "intermediate_size": 5}, **MAMBA2, **GRANITE,
    num_local_experts=3, num_experts_per_tok=2)
hub("granite_hybrid_dense", "GraniteMoeHybrid", **ATTENTION, **MAMBA2, **GRANITE, num_local_experts=0,
    position_embedding_type="rope", tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
FALCON = dict(**ATTENTION, **MAMBA2, num_hidden_layers=2, embedding_multiplier=3.0,
              lm_head_multiplier=0.4, mlp_multipliers=[0.6, 1.7], key_multiplier=0.7,
              attention_in_multiplier=0.8, attention_out_multiplier=1.3, ssm_in_multiplier=1.2,
              ssm_out_multiplier=0.9, ssm_multipliers=[0.5, 1.5, 0.75, 1.25, 0.8],
              rope_parameters=dict(rope_type="default", rope_theta=50.0))
hub("falcon_h1", "FalconH1", **FALCON, mamba_d_ssm=12)
hub("falcon_h1_norm", "FalconH1", **FALCON, mamba_d_ssm=None, mamba_rms_norm=True,
    mamba_norm_before_gate=False)
hub("nemotron_h", "NemotronH", **ATTENTION, head_dim=6, n_groups=2, ssm_state_size=3, mamba_num_heads=6,
    mamba_head_dim=4, chunk_size=8, time_step_min=0.3, mlp_bias=True,
    layers_block_type=["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"])
hub("lfm2", "Lfm2", **ATTENTION, num_hidden_layers=3, conv_bias=True, block_auto_adjust_ff_dim=False,
    layer_types=["conv", "full_attention", "conv"],
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
hub("gpt_oss", "GptOss", **{**ATTENTION, "intermediate_size": 5}, head_dim=4, num_hidden_layers=2,
    num_local_experts=3, num_experts_per_tok=2, sliding_window=4, swiglu_limit=0.7,
    rope_parameters=dict(rope_type="yarn", rope_theta=20.0, factor=4.0, truncate=False,
                         original_max_position_embeddings=16))
hub("minimax", "MiniMax", hidden_size=8, intermediate_size=6, num_hidden_layers=3,
    num_attention_heads=2, num_key_value_heads=1, head_dim=4, num_local_experts=3,
    num_experts_per_tok=2, block_size=8, max_position_embeddings=64,
    layer_types=["linear_attention", "linear_attention", "full_attention"],
    **{f"{part}_{factor}_factor": value for part in ("full_attn", "linear_attn", "mlp")
       for factor, value in (("alpha", 3.5), ("beta", 0.75))},
    rope_parameters=dict(rope_type="default", rope_theta=50.0))
EXPERTS = dict(num_experts=3, num_experts_per_tok=2,
               rope_parameters=dict(rope_type="default", rope_theta=50.0), max_position_embeddings=64,
               hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
hub("mixtral", "Mixtral", **{**EXPERTS, "num_experts": 4}, num_hidden_layers=2, intermediate_size=5,
    head_dim=6, sliding_window=4)
hub("qwen2_moe", "Qwen2Moe", **EXPERTS, num_hidden_layers=3, intermediate_size=7, decoder_sparse_step=2,
    moe_intermediate_size=5, shared_expert_intermediate_size=10)
hub("qwen3_moe", "Qwen3Moe", **EXPERTS, num_hidden_layers=3, intermediate_size=7, mlp_only_layers=[1],
    moe_intermediate_size=5, head_dim=6, norm_topk_prob=True)
hub("olmoe", "Olmoe", **EXPERTS, num_hidden_layers=2, intermediate_size=5)
DELTA = dict(linear_num_value_heads=2, linear_key_head_dim=4, linear_conv_kernel_dim=4,
             max_position_embeddings=64, hidden_size=8, intermediate_size=12, num_hidden_layers=3,
             num_attention_heads=2, num_key_value_heads=1,
             layer_types=["linear_attention", "linear_attention", "full_attention"])
with without_fla():
    hub("qwen3_next", "Qwen3Next", **DELTA, linear_num_key_heads=1, linear_value_head_dim=3, head_dim=8,
        mlp_only_layers=[0, 1, 2],
        rope_parameters=dict(rope_type="default", rope_theta=50.0, partial_rotary_factor=0.25))
    hub("qwen3_next_moe", "Qwen3Next", **{**DELTA, "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"]}, linear_num_key_heads=1,
        linear_value_head_dim=3, head_dim=8, num_experts=3, num_experts_per_tok=2, mlp_only_layers=[1],
        moe_intermediate_size=4, shared_expert_intermediate_size=8,
        rope_parameters=dict(rope_type="default", rope_theta=50.0, partial_rotary_factor=0.25))
    hub("olmo_hybrid", "OlmoHybrid", **DELTA, linear_num_key_heads=2, linear_value_head_dim=6,
        rope_parameters=dict(rope_type="default", rope_theta=None))

# Those of fla (the package flash-linear-attention), on its reference functions.
from fla_on_cpu import fla  # noqa: E402
import fla.models  # noqa: E402

fla.models.__version__ = fla.__version__
FLA = dict(library=fla.models, hidden_size=12, num_hidden_layers=3, intermediate_size=10,
           max_position_embeddings=64, fuse_swiglu=False)
SOFTMAX = dict(layers=[1], num_heads=2, num_kv_heads=1, qkv_bias=False, window_size=5, rope_theta=50.0)
hub("delta_net", "DeltaNet", **FLA, num_heads=2, expand_v=1.5, use_gate=True, allow_neg_eigval=True)
hub("gated_deltanet", "GatedDeltaNet", **FLA, head_dim=4, num_heads=1, num_v_heads=2, expand_v=1.5,
    attn=SOFTMAX)
hub("gla", "GLA", **FLA, num_heads=2, expand_k=0.5, expand_v=1.5, attn=SOFTMAX)
hub("retnet", "RetNet", **FLA, num_heads=3, norm_eps=1e-3)
hub("hgrn2", "HGRN2", **FLA, num_heads=None, expand_ratio=5, use_lower_bound=False, norm_eps=1e-3)
hub("linear_attn", "LinearAttention", **FLA, num_heads=3, expand_k=0.5, feature_map="elu",
    norm_feature_map=True, attn=SOFTMAX)
hub("kda", "KDA", **FLA, head_dim=4, num_heads=1, num_v_heads=2, expand_v=1.5, tie_word_embeddings=True)
