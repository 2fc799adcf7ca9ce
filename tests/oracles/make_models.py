"""Whole language models with small random weights: how a released model joins its layers.
Oracles: the causal language models of transformers.  A file holds the weights under the model's own
names, tokens, logits, the mean loss and its gradients."""

import os

import torch
import transformers
from transformers import (Cohere2Config, Cohere2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig,
                          GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM, JambaConfig,
                          JambaForCausalLM, LlamaConfig, LlamaForCausalLM, MiniMaxConfig,
                          MiniMaxForCausalLM, Olmo2Config, Olmo2ForCausalLM)

from common import HERE, Random, i32, in_fp64, version, without_fla, write

with without_fla():
    from transformers import (OlmoHybridConfig, OlmoHybridForCausalLM, Qwen3NextConfig,
                              Qwen3NextForCausalLM)

VOCABULARY, ROWS, TOKENS = 11, 2, 13


def draw(model, name):
    """Not a training start: every term shall matter."""
    r = Random("model weights " + name)
    for n, p in model.named_parameters():
        last = n.split(".")[-1]
        if last == "A_log":
            w = r.uniform(*p.shape, low=-1.0, high=1.5)
        elif last == "dt_bias" or n.endswith("dt_proj.bias"):
            w = r.uniform(*p.shape, low=-3.0, high=0.0)
        elif p.dim() == 1:  # norms, biases, D: moved off where they start
            w = p.data.double() + r.normal(*p.shape, scale=0.3)
        elif "conv1d" in n:
            w = r.normal(*p.shape, scale=0.5)
        else:
            w = r.normal(*p.shape, scale=p.shape[-1] ** -0.5)
        p.data = w


def model(name, make, config, note=""):
    common = dict(vocab_size=VOCABULARY, pad_token_id=None, bos_token_id=None, eos_token_id=None,
                  attn_implementation="eager", experts_implementation="eager",
                  use_cache=False)
    torch.manual_seed(0)
    with in_fp64():
        lm = make(config(common)).double().eval()
        draw(lm, name)
        r = Random("model " + name)
        tokens, targets = (r.integers(VOCABULARY, ROWS, TOKENS) for _ in range(2))
        logits = lm(input_ids=tokens).logits
        assert logits.dtype == torch.float64
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
    weights = dict(lm.named_parameters())
    assert all(w.grad is not None for w in weights.values()), name
    source = version(transformers, torch) + f": transformers.{make.__name__}" + note
    write(os.path.join(HERE, f"model_{name}.h5"), {"operation": "model_" + name, "source": source},
          {"weights": weights, "inputs": {"tokens": i32(tokens), "targets": i32(targets)},
           "outputs": {"logits": logits, "loss": loss[None]},
           "gradients": {"d" + n: w.grad for n, w in weights.items()}})


def llama(**rope):
    return lambda common: LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-5, max_position_embeddings=64,
        tie_word_embeddings=False, rope_parameters=rope, **common)


model("llama", LlamaForCausalLM, llama(rope_type="default", rope_theta=500.0))
model("llama3_scaling", LlamaForCausalLM,
      llama(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16))
model("llama_yarn", LlamaForCausalLM,
      llama(rope_type="yarn", rope_theta=20.0, factor=4.0, original_max_position_embeddings=16))
model("llama_yarn_between", LlamaForCausalLM,
      llama(rope_type="yarn", rope_theta=20.0, factor=4.0, original_max_position_embeddings=16,
            beta_fast=2.0, beta_slow=0.5, truncate=False, attention_factor=1.3))

model("gpt2", GPT2LMHeadModel, lambda common: GPT2Config(
    n_embd=8, n_layer=2, n_head=2, n_positions=TOKENS, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, **common),
      "; weights of its Conv1D are [in, out]")

model("jamba", JambaForCausalLM, lambda common: JambaConfig(
    hidden_size=8, intermediate_size=6, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
    attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, expert_layer_offset=1, num_experts=3,
    num_experts_per_tok=2, mamba_d_state=3, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=2, **common))

model("gemma3", Gemma3ForCausalLM, lambda common: Gemma3TextConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
    head_dim=6, query_pre_attn_scalar=5, sliding_window=4, max_position_embeddings=64,
    rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                     "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0}},
    **common))

model("cohere2", Cohere2ForCausalLM, lambda common: Cohere2Config(
    hidden_size=8, intermediate_size=12, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
    head_dim=6, sliding_window=4, logit_scale=0.25, max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 50.0}, **common))

model("granite", GraniteForCausalLM, lambda common: GraniteConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    embedding_multiplier=12.0, logits_scaling=4.0, residual_multiplier=0.22, attention_multiplier=0.3,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 50.0},
    tie_word_embeddings=True, **common))

model("minimax", MiniMaxForCausalLM, lambda common: MiniMaxConfig(
    hidden_size=8, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=4, layer_types=["full_attention"] * 2, num_local_experts=3, num_experts_per_tok=2,
    full_attn_alpha_factor=3.5, mlp_alpha_factor=3.5, full_attn_beta_factor=0.75, mlp_beta_factor=0.75,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 50.0}, **common),
      "; every layer full attention")

model("olmo2", Olmo2ForCausalLM, lambda common: Olmo2Config(
    hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 50.0}, **common))

with without_fla():
    model("olmo_hybrid", OlmoHybridForCausalLM, lambda common: OlmoHybridConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=6,
        linear_conv_kernel_dim=4, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": None}, **common),
          "; no rotary positions, as released")
    model("qwen3_next", Qwen3NextForCausalLM, lambda common: Qwen3NextConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0, 1], linear_num_value_heads=2, linear_num_key_heads=1, linear_key_head_dim=4,
        linear_value_head_dim=3, linear_conv_kernel_dim=4, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.25},
        **common), "; every MLP dense")
