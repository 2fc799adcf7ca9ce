"""Whole mixers of softmax attention that see a part of the past, or keep a part of it: multi-head latent
attention, native sparse attention, Longformer; and mixers side by side.  Oracles: transformers' modules,
and fla's NativeSparseAttention on fla's own reference functions."""

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import DeepseekV3Config, FalconH1Config, LongformerConfig
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.falcon_h1 import modeling_falcon_h1 as falcon
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from common import in_fp64, repeat_heads, version
from fla_on_cpu import fla
from layer_files import additive, attend, layer
import fla.layers.nsa
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from transformers import masking_utils

HF, FLA = version(transformers, torch) + ": transformers.models.", version(fla, torch) + ": fla."
CAUSAL = masking_utils.causal_mask_function


# Multi-head latent attention.

for name, rank in (("deepseek_v3_attention", None), ("deepseek_v3_attention_query_rank", 5)):
    config = DeepseekV3Config(
        hidden_size=12, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=rank, kv_lora_rank=7,
        qk_nope_head_dim=4, qk_rope_head_dim=6, v_head_dim=5, num_hidden_layers=1, rms_norm_eps=1e-6,
        rope_interleave=True, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attn_implementation="eager")
    with in_fp64():
        rotary = deepseek.DeepseekV3RotaryEmbedding(config)
    layer(name, HF + "deepseek_v3.modeling_deepseek_v3.DeepseekV3Attention",
          deepseek.DeepseekV3Attention(config, 0), lambda call, x: attend(call, x, CAUSAL, rotary), 2, 17, 12,
          {"width": 12, "heads": 3, "query_rank": rank or 0, "latent": 7, "key": 4, "shared": 6, "value": 5,
           "base": 100.0})


# Native sparse attention.

def nsa(q, k, v, g_cmp, g_slc, g_swa, block_size, block_counts, window_size, **_):
    """fla's naive_nsa, which asks for groups of 16 heads and for flash_attn, in its own parts."""
    scale = k.shape[-1] ** -0.5
    pad = -k.shape[1] % block_size
    mean = lambda x: F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, block_size)).mean(2)  # whole blocks count
    compressed, _ = naive_nsa_compression(q, mean(k), mean(v), block_size, scale)
    chosen = naive_nsa_topk(q, mean(k), block_counts, block_size, scale)
    # A slot that holds no block is -1 and must not count; block 0 behind the end would.
    chosen = torch.where(chosen < 0, k.shape[1], chosen)
    selected = naive_nsa_selection(q, k, v, chosen, block_size, scale)
    T = q.shape[1]
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    seen = (j <= i) & (i - j < window_size)
    heads = lambda x: repeat_heads(x, q.shape[2]).transpose(1, 2)
    window = F.scaled_dot_product_attention(q.transpose(1, 2), heads(k), heads(v), attn_mask=seen).transpose(1, 2)
    return compressed * g_cmp[..., None] + selected * g_slc[..., None] + window * g_swa[..., None]


fla.layers.nsa.parallel_nsa = nsa
for name, blocks, window in (("fla_nsa", 4, 5), ("fla_nsa_few_blocks", 3, 64)):
    with in_fp64():
        module = fla.layers.nsa.NativeSparseAttention(hidden_size=12, num_heads=4, num_kv_heads=2, head_dim=4,
                                                      block_size=4, block_counts=blocks, window_size=window)
    layer(name, FLA + "layers.nsa.NativeSparseAttention, its kernel replaced by fla.ops.nsa.naive's parts",
          module, lambda call, x: call(x)[0], 2, 41, 12,
          {"width": 12, "heads": 4, "key_heads": 2, "head_width": 4, "block": 4, "blocks": blocks,
           "window": window})


# Longformer as a language model: row i of the causal form is the last row of the module's own result for
# the text up to i, where nothing follows it.

class CausalLongformer(nn.Module):
    def __init__(self, window, leading):
        super().__init__()
        config = LongformerConfig(hidden_size=12, num_attention_heads=3, attention_window=[2 * window],
                                  attention_probs_dropout_prob=0.0)
        self.attention, self.window, self.leading = LongformerSelfAttention(config, 0), window, leading
        for projection in self.attention.children():
            projection.register_parameter("bias", None)

    def forward(self, x):
        rows = []
        for n in range(1, x.shape[1] + 1):
            T = -n % (2 * self.window) + n  # the module wants whole windows
            far = torch.zeros(x.shape[0], T)
            far[:, : min(n, self.leading)] = 1.0
            far[:, n:] = -1.0
            y, = self.attention(F.pad(x[:, :n], (0, 0, 0, T - n)), attention_mask=10000.0 * far,
                                is_index_masked=far < 0, is_index_global_attn=far > 0, is_global_attn=True)
            rows.append(y[:, n - 1])
        return torch.stack(rows, 1)


for leading in (1, 3):
    layer(f"longformer_{leading}", HF + "longformer.modeling_longformer.LongformerSelfAttention without biases, "
          "on each beginning of the text, of which the last row is kept", CausalLongformer(4, leading),
          lambda call, x: call(x), 2, 19, 12,
          {"width": 12, "heads": 3, "window": 5, "global_tokens": leading})


# Mixers side by side.

class Beside(nn.Module):
    def __init__(self, config):
        super().__init__()
        block = falcon.FalconH1DecoderLayer(config, 0)
        block.mamba.register_buffer("mup_vector", torch.ones(()), persistent=False)  # the model's, all ones
        self.mamba, self.self_attn = block.mamba, block.self_attn
        self.block, self.rotary = [block], [falcon.FalconH1RotaryEmbedding(config)]

    def forward(self, x):
        """The mixers of the block, before their sum meets the residual stream."""
        block, T = self.block[0], x.shape[1]
        position = self.rotary[0](x, torch.arange(T)[None])
        a = self.self_attn(hidden_states=x * block.attention_in_multiplier, attention_mask=additive(CAUSAL, T),
                           position_embeddings=position)[0]
        return self.mamba(hidden_states=x) * block.ssm_out_multiplier + a * block.attn_out_multiplier


config = FalconH1Config(
    hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=2, num_hidden_layers=1,
    mamba_d_ssm=16, mamba_n_heads=4, mamba_d_head=4, mamba_n_groups=2, mamba_d_state=3, mamba_d_conv=4,
    mamba_chunk_size=8, mamba_rms_norm=True, mamba_norm_before_gate=False, rms_norm_eps=1e-5,
    attention_in_multiplier=0.5, ssm_out_multiplier=0.7, attention_out_multiplier=1.5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="eager")
with in_fp64():
    beside = Beside(config)
layer("falcon_h1", HF + "falcon_h1.modeling_falcon_h1.FalconH1DecoderLayer, its two mixers", beside,
      lambda call, x: call(x), 1, 17, 8, {"width": 8})
