"""Gated linear attention, a gate per key channel.  Oracle: fla's naive recurrent form."""

import fla
import torch
from fla.ops.gla.naive import naive_recurrent_gla

from common import Random, case, i32, per_document, repeat_heads, version

SOURCE = f"{version(fla, torch)}: fla.ops.gla.naive.naive_recurrent_gla"


def sample(name, B, T, H, Hk, K, V, N=None, mean=0.1):
    r = Random("gated_linear " + name)
    x = {"q": r.normal(B, T, Hk, K), "k": r.normal(B, T, Hk, K), "v": r.normal(B, T, H, V),
         "g": r.log_decay(B, T, H, K, mean=mean)}
    if N:
        x["initial_state"] = r.normal(N, H, K, V, scale=0.5)
    return x


def gated(q, k, v, g, initial_state=None, scale=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    if scale is not None:  # the source knows K^-1/2 alone
        q = q * (scale * q.shape[-1] ** 0.5)
    o, s = naive_recurrent_gla(q, k, v, g, initial_state, True)
    return {"o": o, "final_state": s}


case("gated_linear", "plain", SOURCE, gated, sample("plain", 1, 70, 2, 2, 4, 3))
case("gated_linear", "state", SOURCE, gated, sample("state", 2, 33, 1, 1, 5, 3, N=2))
case("gated_linear", "groups", SOURCE + ", heads repeated", gated,
     sample("groups", 1, 17, 4, 2, 4, 3, N=1))
case("gated_linear", "one", SOURCE, gated, sample("one", 2, 1, 2, 1, 4, 3, N=2))
case("gated_linear", "strong_scale", SOURCE, lambda **x: gated(**x, scale=0.3),
     sample("strong_scale", 1, 70, 1, 1, 4, 3, N=1, mean=3.0), {"scale": 0.3})
x = sample("all_extremes", 1, 33, 1, 1, 4, 3, N=1)
x["g"] = torch.where(x["g"] < -0.1, -30.0, 0.0)
case("gated_linear", "all_extremes", SOURCE + ", every gate 0 or -30", gated, x)
cu = [0, 1, 18, 21, 54]
case("gated_linear", "packed", SOURCE + ", each document alone",
     lambda initial_state, **x: per_document(gated, cu, x, {"initial_state": initial_state}),
     sample("packed", 1, 54, 2, 1, 4, 3, N=4), index={"cu_seqlens": i32(cu)})
