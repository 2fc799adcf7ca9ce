"""The delta rule and the gated delta rule.  Oracles: fla's naive forms, and transformers' chunked form,
which shares keys between heads."""

import torch
import transformers

from common import Random, case, i32, per_document, repeat_heads, version, without_fla

with without_fla():
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

import fla
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

PLAIN = f"{version(fla, torch)}: fla.ops.delta_rule.naive.delta_rule_recurrence"
GATED = f"{version(fla, torch)}: fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule"
CHUNK = (f"{version(transformers, torch)}: transformers.models.qwen3_next.modeling_qwen3_next."
         "torch_chunk_gated_delta_rule")


def sample(name, B, T, H, Hk, K, V, N=None, gate=False, most=1.0):
    r = Random("delta " + name)
    x = {"q": r.unit(B, T, Hk, K), "k": r.unit(B, T, Hk, K), "v": r.normal(B, T, H, V),
         "beta": r.uniform(B, T, H, high=most)}
    x["beta"][:, 3::7] = 0.0  # rows that write nothing, and rows that write in full
    x["beta"][:, 5::11] = most
    if T > 9:
        x["k"][:, 8] = x["k"][:, 7]  # a key repeated at once, and one repeated later
        x["k"][:, -1] = x["k"][:, 2]
    if gate:
        x["g"] = r.log_decay(B, T, H)
    if N:
        x["initial_state"] = r.normal(N, H, K, V, scale=0.5)
    return x


def plain(q, k, v, beta, initial_state=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    q, k, v, beta = (x.transpose(1, 2) for x in (q, k, v, beta))
    o, s = delta_rule_recurrence(q, k, v, beta, initial_state)
    return {"o": o.transpose(1, 2), "final_state": s}


def gated(q, k, v, beta, g, initial_state=None, scale=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    o, s = naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale, initial_state, True)
    return {"o": o, "final_state": s}


def chunked(q, k, v, beta, g, initial_state=None):
    o, s = torch_chunk_gated_delta_rule(q, k, v, g, beta, 16, initial_state, True)
    return {"o": o, "final_state": s}


case("delta", "plain", PLAIN, plain, sample("plain", 1, 70, 2, 2, 4, 3))
case("delta", "plain_state", PLAIN, plain, sample("plain_state", 2, 33, 1, 1, 5, 3, N=2))
case("delta", "plain_beta2", PLAIN + ", beta up to 2", plain,
     sample("plain_beta2", 1, 33, 2, 1, 4, 3, N=1, most=2.0))
case("delta", "plain_one", PLAIN, plain, sample("plain_one", 2, 1, 2, 1, 4, 3, N=2))
case("delta", "gated", GATED, gated, sample("gated", 1, 70, 2, 2, 4, 3, gate=True))
case("delta", "gated_state", GATED + ", beta up to 2", gated,
     sample("gated_state", 2, 17, 2, 1, 4, 3, N=2, gate=True, most=2.0))
case("delta", "gated_one", GATED, gated, sample("gated_one", 2, 1, 2, 2, 4, 3, gate=True))
case("delta", "gated_scale", GATED, lambda **x: gated(**x, scale=0.3),
     sample("gated_scale", 1, 17, 2, 2, 4, 3, gate=True), {"scale": 0.3})
case("delta", "gated_chunked", CHUNK + ", chunks of 16", chunked,
     sample("gated_chunked", 1, 33, 4, 2, 4, 3, N=1, gate=True))
cu = [0, 1, 18, 21, 54]
for name, source, function in (("plain_packed", PLAIN, plain), ("gated_packed", GATED, gated)):
    case("delta", name, source + ", each document alone",
         lambda initial_state, **x: per_document(function, cu, x, {"initial_state": initial_state}),
         sample(name, 1, 54, 2, 1, 4, 3, N=4, gate=function is gated),
         index={"cu_seqlens": i32(cu)})
