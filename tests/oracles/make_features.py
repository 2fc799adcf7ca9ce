"""Feature maps of linear attention and the mixers that are made of them.  Oracles: torch, on the
quadratic form of each paper, without features in a row; transformers' Lightning attention of MiniMax;
fla's naive GLA under HGRN2's
gates."""

import math

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from common import Random, case, i32, per_document, version
from layer_files import layer

import fla
from fla.ops.gla.naive import naive_recurrent_gla

TORCH = version(torch)


def plain(call, x):
    return call(x)


# Features.


def positive(x, projection, scale, shift):
    """Choromanski et al., equation 5 of arXiv:2009.14794: h(x) exp(w.x), h(x) = exp(-|x|^2 / 2)."""
    u = x * scale
    logits = torch.einsum("bthk,hmk->bthm", u, projection)
    return {"y": torch.exp(logits - u.square().sum(-1, keepdim=True) / 2 - shift[..., None]) / math.sqrt(
        projection.shape[1])}


def trigonometric(x, projection, scale):
    u = x * scale
    angle = torch.einsum("bthk,hmk->bthm", u, projection)
    size = torch.exp(u.square().sum(-1, keepdim=True) / 2) / math.sqrt(projection.shape[1])
    return {"y": size * torch.cat([angle.cos(), angle.sin()], -1)}


r = Random("random_features")
x, w, shift = r.normal(2, 5, 3, 6), r.normal(3, 9, 6), r.normal(2, 5, 3)
case("random_features", "positive", TORCH + ": einsum, exp", lambda x, shift: positive(x, w, 6**-0.25, shift),
     {"x": x, "shift": shift}, {"kind": "positive"}, index={"projection": w})
case("random_features", "trigonometric", TORCH + ": einsum, cos, sin", lambda x: trigonometric(x, w, 0.5),
     {"x": x}, {"kind": "trigonometric", "scale": 0.5}, index={"projection": w})


def cosine(x, frequency, first=0):
    angle = (torch.arange(x.shape[1])[:, None] + first) * frequency
    return {"y": torch.cat([F.relu(x) * angle.cos()[..., None], F.relu(x) * angle.sin()[..., None]], -1)}


x, frequency = Random("cosine_features").normal(2, 7, 3, 5), torch.tensor([0.1, 0.25, 0.02])
case("cosine_features", "plain", TORCH + ": relu, cos, sin", cosine, {"x": x, "frequency": frequency})
case("cosine_features", "offset", TORCH + ": relu, cos, sin", lambda x, frequency: cosine(x, frequency, 11),
     {"x": x, "frequency": frequency}, {"offset": 11})
cu = [0, 1, 4, 9]
case("cosine_features", "packed", TORCH + ": relu, cos, sin",
     lambda x, frequency: per_document(lambda x: cosine(x, frequency), cu, {"x": x}),
     {"x": Random("cosine_features packed").normal(1, 9, 3, 5), "frequency": frequency},
     index={"cu_seqlens": i32(cu)})


def gate(x, bound):
    f = bound + (1 - bound) * torch.sigmoid(x)
    return {"k": 1 - f, "g": f.log() if bound else F.logsigmoid(x)}


x = Random("forget_gate").normal(5, 7, scale=2.0)
for name, bound in (("free", 0.0), ("bound", 0.4)):
    case("forget_gate", name, TORCH + ": sigmoid and log, as fla's HGRN2Attention has them",
         lambda x: gate(x, bound), {"x": x}, {"bound": bound})

# Layers, on the weights of all pairs of tokens.


class Quadratic(nn.Module):
    """o_t = sum over s <= t of weight(q_t, k_s) v_s, divided by the sum of weights plus eps."""

    def __init__(self, D, H, weight, divide=True, eps=1e-6, fast=False):
        super().__init__()
        self.H, self.weight, self.divide, self.eps = H, weight, divide, eps
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))
        if fast:
            self.alpha_proj = nn.Linear(D, H)
        if not divide:
            self.norm = nn.RMSNorm(D // H, eps=1e-5)

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.H, -1)).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))  # [B, H, T, K]
        if hasattr(self, "alpha_proj"):
            v = v * torch.sigmoid(self.alpha_proj(x)).transpose(1, 2)[..., None]
        p = self.weight(q, k).tril()
        o = p @ v
        o = o / (p.sum(-1, keepdim=True) + self.eps) if self.divide else self.norm(o)
        return self.o_proj(o.transpose(1, 2).flatten(2))


def of_feature(f):
    """The scale K^-1/2 on weights matters beside eps, and where nothing is divided."""
    return lambda q, k: f(q) @ f(k).transpose(-1, -2) * q.shape[-1] ** -0.5


def of_cosine(horizon):
    def weight(q, k):
        t = torch.arange(q.shape[2])
        return F.relu(q) @ F.relu(k).transpose(-1, -2) * torch.cos(
            math.pi / 2 * (t[:, None] - t[None, :]) / horizon)
    return weight


def elu1(x):
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


QUADRATIC = TORCH + ": the quadratic form of "
layer("linear_transformer", QUADRATIC + "arXiv:2006.16236, elu plus one",
      Quadratic(12, 2, of_feature(elu1)), plain, 2, 17, 12, {"heads": 2, "eps": 1e-6})
layer("linear_transformer_relu", QUADRATIC + "arXiv:2006.16236, relu",
      Quadratic(12, 2, of_feature(F.relu), eps=1e-2), plain, 2, 17, 12, {"heads": 2, "eps": 1e-2})
layer("cosformer", QUADRATIC + "arXiv:2202.08791, equation 10; index - index' over a horizon of 40",
      Quadratic(12, 2, of_cosine(40)), plain, 2, 17, 12, {"heads": 2, "eps": 1e-6, "horizon": 40})
layer("fast_weights", QUADRATIC + "arXiv:2102.11174 without a divisor, sigmoid strengths, RMSNorm per head",
      Quadratic(12, 2, of_feature(elu1), divide=False, fast=True), plain, 2, 17, 12, {"heads": 2})

for index in (0, 1):
    layer(f"minimax_lightning_{index}",
          version(transformers, torch) + ": transformers.models.minimax.modeling_minimax."
          f"MiniMaxLightningAttention, layer {index} of 2",
          MiniMaxLightningAttention(MiniMaxConfig(
              hidden_size=12, num_attention_heads=4, num_key_value_heads=4, head_dim=3, num_hidden_layers=2,
              block_size=8, hidden_act="silu",
              layer_types=["linear_attention", "linear_attention"]), index),
          lambda call, x: call(x, None, None)[0],
          2, 17, 12, {"heads": 4, "head_width": 3, "layer": index, "layers": 2, "eps": 1e-6})

class Hgrn2(nn.Module):
    """HGRN2Attention without convolutions: q_proj, f_proj, i_proj, g_norm over all heads, o_proj."""

    def __init__(self, D, H, bound):
        super().__init__()
        self.H, self.bound = H, bound
        self.q_proj, self.f_proj, self.i_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.g_norm = nn.RMSNorm(D, eps=1e-5)

    def forward(self, x):
        made = gate(self.f_proj(x), self.bound)
        q, k, v, g = (y.unflatten(-1, (self.H, -1))
                      for y in (F.silu(self.q_proj(x)), made["k"], self.i_proj(x), made["g"]))
        return self.o_proj(self.g_norm(naive_recurrent_gla(q, k, v, g)[0].flatten(2)))


for index, bound in ((0, 0.0), (1, 0.5)):
    layer(f"fla_hgrn2_{index}", version(fla, torch) + ": fla.ops.gla.naive.naive_recurrent_gla, under the "
          f"projections and gates of HGRN2Attention, lower bound {bound}",
          Hgrn2(12, 2, bound), plain, 2, 17, 12, {"heads": 2, "lower_bound": bound, "eps": 1e-5})
