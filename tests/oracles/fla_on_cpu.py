"""fla's modules on the CPU in fp64: the names of its GPU kernels mean fla's own reference functions, and
what these lack (convolution, L2 norm) comes from transformers.  Importing this does it."""

import torch
from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn

import fla
import fla.layers.attn
import fla.layers.delta_net
import fla.layers.gated_deltanet
import fla.layers.gla
import fla.layers.hgrn2
import fla.layers.kda
import fla.layers.linear_attn
import fla.layers.multiscale_retention
import fla.modules.activations
import fla.modules.mlp
from fla.modules import FusedRMSNormGated, RMSNorm, RotaryEmbedding, ShortConvolution
from fla.modules.norm.layernorm_gated import rms_norm_ref
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.gate import naive_kda_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from transformers.models.qwen3_next.modeling_qwen3_next import l2norm


def conv(x, weight, bias=None, activation=None, **_):
    return causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation).transpose(1, 2), None


def rotated(self, q, k, **_):
    self._update_cos_sin_cache(q.shape[1], device=q.device, dtype=q.dtype)
    return tuple(rotary_embedding_ref(x, self._cos_cached, self._sin_cached) for x in (q, k))


def gated_delta_rule(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, **_):
    q, k = (l2norm(x).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    g = naive_gdn_gate(g, A_log, dt_bias, torch.float64)
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    return naive_recurrent_gated_delta_rule(q, k, v, beta, g)


def delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel, **_):
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    o, s = delta_rule_recurrence(*(x.transpose(1, 2) for x in (q, k, v, beta)))
    return o.transpose(1, 2), s


def kda(q, k, v, g, beta, A_log, dt_bias, allow_neg_eigval, **_):
    g = naive_kda_gate(g, A_log, dt_bias, torch.float64)
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    return naive_recurrent_kda(l2norm(q), l2norm(k), v, g, beta)


def gated_norm(self, x, g):  # the reference's own gate is silu
    if self.activation == "sigmoid":
        return rms_norm_ref(x, self.weight, None, None, self.eps) * g.sigmoid()
    return rms_norm_ref(x, self.weight, None, g, self.eps)


def norm_and_product(x, norm_weight, norm_bias, weight, bias, eps=1e-5):
    return torch.nn.functional.linear(rms_norm_ref(x, norm_weight, norm_bias, None, eps), weight, bias)


def norm(self, x, residual=None, prenorm=False):
    x = x if residual is None else x + residual
    y = rms_norm_ref(x, self.weight, None, None, self.eps)
    return (y, x) if prenorm else y


def flash_attention(q, k, v, causal, window_size):
    T = q.shape[1]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    seen = (distance >= 0) & ((window_size[0] < 0) | (distance <= window_size[0]))
    q, k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def retention(q, k, v, **_):
    return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None


def linear(q, k, v, normalize, **_):
    return naive_recurrent_linear_attn(q, k, v, normalize=normalize)


ShortConvolution.forward = lambda self, x, **_: conv(x, self.weight[:, 0], self.bias, self.activation)
FusedRMSNormGated.forward = gated_norm
RMSNorm.forward = norm
RotaryEmbedding.forward = rotated
fla.layers.gla.fused_recurrent_gla = lambda q, k, v, gk, **_: naive_recurrent_gla(q, k, v, gk)
fla.layers.hgrn2.fused_recurrent_gla = lambda q, k, v, gk, **_: naive_recurrent_gla(q, k, v, gk)
fla.layers.hgrn2.swish = fla.modules.activations.ACT2FN["swish"] = torch.nn.functional.silu
fla.layers.hgrn2.rms_norm_linear = norm_and_product
fla.layers.gated_deltanet.causal_conv1d = conv
fla.layers.gated_deltanet.chunk_gated_delta_rule = gated_delta_rule
fla.layers.delta_net.fused_recurrent_delta_rule = delta_rule
fla.layers.kda.chunk_kda = kda
fla.layers.multiscale_retention.chunk_retention = retention
fla.layers.multiscale_retention.fused_recurrent_retention = retention
fla.layers.attn.flash_attn_func = flash_attention
fla.modules.mlp.swiglu = lambda gate, x: torch.nn.functional.silu(gate) * x
fla.modules.mlp.SwiGLULinear.forward = lambda self, gate, x, weight, bias: torch.nn.functional.linear(
    torch.nn.functional.silu(gate) * x, weight, bias)
for kernel in ("chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn"):
    setattr(fla.layers.linear_attn, kernel, linear)
