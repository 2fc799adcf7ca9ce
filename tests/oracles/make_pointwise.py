"""Activations, rotary positions and the short causal convolution.  Oracles: torch and transformers."""

import torch
import torch.nn.functional as F
import transformers
from transformers import GPTJConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn

from common import Random, case, i32, in_fp64, per_document, version

TORCH, HF = version(torch), version(transformers, torch) + ": transformers."

KINDS = {
    "silu": (F.silu, "torch.nn.functional.silu"),
    "gelu": (F.gelu, "torch.nn.functional.gelu"),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), "torch.nn.functional.gelu, approximate tanh"),
    "relu": (F.relu, "torch.nn.functional.relu"),
    "sigmoid": (torch.sigmoid, "torch.sigmoid"),
    "tanh": (torch.tanh, "torch.tanh"),
    "softplus": (F.softplus, "torch.nn.functional.softplus"),
    "logsigmoid": (F.logsigmoid, "torch.nn.functional.logsigmoid"),
    "elu1": (lambda x: F.elu(x) + 1, "torch.nn.functional.elu plus one"),
    "exp": (torch.exp, "torch.exp"),
}

# Moderate numbers, and a few far out on both sides, where formulas overflow that are not careful.
r = Random("activation")
x = r.normal(5, 9, scale=2.0)
x[0, :6] = torch.tensor([-600.0, -30.0, -12.0, 12.0, 30.0, 600.0])
mild = x.clamp(-15.0, 15.0)
for kind, (function, name) in KINDS.items():
    # torch's softplus drops exp(-x) above 20, 2e-9 of the result; exp is kept where its sum means something.
    case("activation", kind, f"{TORCH}: {name}", lambda x: {"y": function(x)},
         {"x": mild if kind in ("softplus", "exp", "elu1") else x}, {"kind": kind})
case("activation", "square_relu", HF + "activations.ACT2FN['relu2']",
     lambda x: {"y": ACT2FN["relu2"](x)}, {"x": mild}, {"kind": "square_relu"})

pair = {"a": r.normal(7, 9, scale=2.0), "b": r.normal(7, 9)}
for kind in ("silu", "gelu_tanh", "sigmoid", "relu"):
    function, name = KINDS[kind]
    case("gated_activation", kind, f"{TORCH}: {name} times b", lambda a, b: {"y": function(a) * b}, pair,
         {"kind": kind})
case("gated_activation", "glu", f"{TORCH}: torch.nn.functional.glu",
     lambda a, b: {"y": F.glu(torch.cat([b, a], -1))}, pair, {"kind": "sigmoid"})


def half_split(x, base, width, positions):
    """Llama's tables; GPT-NeoX's rotation, which is Llama's and leaves the columns past `width`."""
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width,
                         rope_parameters={"rope_type": "default", "rope_theta": base})
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(x, positions)
    apply = (modeling_llama if width == x.shape[-1] else modeling_gpt_neox).apply_rotary_pos_emb
    return {"y": apply(x, x, cos, sin, unsqueeze_dim=2)[0]}


def interleaved(x, positions):
    K = x.shape[-1]
    table = modeling_gptj.create_sinusoidal_positions(int(positions.max()) + 1, K)[positions]
    sin, cos = table.split(K // 2, -1)
    return {"y": modeling_gptj.apply_rotary_pos_emb(x, sin, cos)}


def tokens(name, *shape):
    return {"x": Random("rotary " + name).normal(*shape)}


def from_zero(T, offset=0):
    return torch.arange(offset, offset + T)[None]


LLAMA = HF + "models.llama.modeling_llama.LlamaRotaryEmbedding, apply_rotary_pos_emb"
NEOX = HF + "models.llama.modeling_llama.LlamaRotaryEmbedding, models.gpt_neox.modeling_gpt_neox.apply_rotary_pos_emb"
GPTJ = HF + "models.gptj.modeling_gptj.create_sinusoidal_positions, apply_rotary_pos_emb"
case("rotary", "llama", LLAMA, lambda x: half_split(x, 10000.0, 8, from_zero(33)),
     tokens("llama", 2, 33, 2, 8))
case("rotary", "llama_offset", LLAMA, lambda x: half_split(x, 500.0, 6, from_zero(5, 1000)),
     tokens("llama_offset", 1, 5, 3, 6), {"base": 500.0, "offset": 1000})
case("rotary", "partial", NEOX, lambda x: half_split(x, 10000.0, 4, from_zero(17)),
     tokens("partial", 1, 17, 2, 10), {"width": 4})
case("rotary", "interleaved", GPTJ, lambda x: interleaved(x, from_zero(17)),
     tokens("interleaved", 2, 17, 2, 8), {"interleaved": True})
case("rotary", "interleaved_offset", GPTJ, lambda x: interleaved(x, from_zero(1, 37)),
     tokens("interleaved_offset", 1, 1, 2, 6), {"interleaved": True, "offset": 37})
cu = [0, 1, 18, 21, 33]
starts = torch.cat([torch.arange(b - a) for a, b in zip(cu[:-1], cu[1:])])[None]
case("rotary", "packed", LLAMA + ", positions from 0 in each document",
     lambda x: half_split(x, 10000.0, 8, starts), tokens("packed", 1, 33, 2, 8),
     index={"cu_seqlens": i32(cu)})


def conv_sample(name, B, T, D, W, N=None, bias=True):
    r = Random("short_conv " + name)
    x = {"x": r.normal(B, T, D), "w": r.normal(D, W)}
    if bias:
        x["bias"] = r.normal(D)
    if N:
        x["initial_state"] = r.normal(N, D, W - 1)
    return x


def conv(x, w, bias=None, initial_state=None, silu=True):
    x, W, T = x.transpose(1, 2), w.shape[1], x.shape[1]
    before = x.new_zeros(*x.shape[:2], W - 1) if initial_state is None else initial_state
    extended = torch.cat([before, x], -1)
    if initial_state is None:
        y = causal_conv1d_fn(x, w, bias, "silu" if silu else None)
    else:
        y = F.conv1d(extended, w[:, None], bias, groups=x.shape[1])
        y = F.silu(y) if silu else y
    return {"y": y.transpose(1, 2), "final_state": extended[..., T:]}


MAMBA = HF + "models.mamba2.modeling_mamba2.causal_conv1d_fn"
CONV = f"{TORCH}: torch.nn.functional.conv1d on the state and the tokens, torch.nn.functional.silu"
case("short_conv", "mamba2", MAMBA, conv, conv_sample("mamba2", 2, 17, 5, 4))
case("short_conv", "mamba2_one", MAMBA, conv, conv_sample("mamba2_one", 2, 1, 5, 4, bias=False))
case("short_conv", "linear", MAMBA + " without an activation", lambda **x: conv(**x, silu=False),
     conv_sample("linear", 1, 33, 4, 3), {"silu": False})
case("short_conv", "state", CONV, conv, conv_sample("state", 2, 17, 5, 4, N=2))
case("short_conv", "state_short", CONV, conv, conv_sample("state_short", 2, 2, 5, 4, N=2, bias=False))
cu = [0, 1, 3, 8, 33]


def packed(x, initial_state, w, bias):
    return per_document(lambda **d: conv(w=w, bias=bias, **d), cu, {"x": x},
                        {"initial_state": initial_state})


case("short_conv", "packed", CONV + ", each document alone", packed,
     conv_sample("packed", 1, 33, 4, 4, N=4), index={"cu_seqlens": i32(cu)})
