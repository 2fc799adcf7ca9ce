"""The delta rule with a gate a key channel.  Oracle: fla's naive recurrence of Kimi Delta Attention."""

import fla
import torch
from fla.ops.kda.naive import naive_chunk_kda, naive_recurrent_kda

from common import Random, case, i32, per_document, version

RECURRENT = f"{version(fla, torch)}: fla.ops.kda.naive.naive_recurrent_kda"
CHUNK = f"{version(fla, torch)}: fla.ops.kda.naive.naive_chunk_kda"


def sample(name, B, T, H, Hk, K, V, N=None, most=1.0):
    r = Random("kda " + name)
    x = {"q": r.unit(B, T, Hk, K), "k": r.unit(B, T, Hk, K), "v": r.normal(B, T, H, V),
         "beta": r.uniform(B, T, H, high=most), "g": r.log_decay(B, T, H, K)}
    x["beta"][:, 3::7] = 0.0  # rows that write nothing, and rows that write in full
    x["beta"][:, 5::11] = most
    if T > 9:
        x["k"][:, 8] = x["k"][:, 7]  # a key repeated at once, and one repeated later
        x["k"][:, -1] = x["k"][:, 2]
    if N:
        x["initial_state"] = r.normal(N, H, K, V, scale=0.5)
    return x


def recurrent(q, k, v, beta, g, initial_state=None, scale=None):
    o, s = naive_recurrent_kda(q, k, v, g, beta, scale, initial_state, True)
    return {"o": o, "final_state": s}


def chunked(q, k, v, beta, g, initial_state=None):
    o, s = naive_chunk_kda(q, k, v, g, beta, None, initial_state, True, 8)
    return {"o": o, "final_state": s}


case("kda", "plain", RECURRENT, recurrent, sample("plain", 1, 70, 2, 2, 4, 3))
case("kda", "state", RECURRENT + ", beta up to 2", recurrent,
     sample("state", 2, 17, 2, 1, 4, 3, N=2, most=2.0))
case("kda", "one", RECURRENT, recurrent, sample("one", 2, 1, 2, 1, 4, 3, N=2))
case("kda", "scale", RECURRENT, lambda **x: recurrent(**x, scale=0.3),
     sample("scale", 1, 17, 2, 2, 4, 3), {"scale": 0.3})
x = sample("chunked", 1, 32, 4, 2, 4, 3, N=1)
x["g"] = x["g"].clamp(min=-5.0)  # this form takes the exponential of what it then masks
case("kda", "chunked", CHUNK + ", chunks of 8", chunked, x)
cu = [0, 1, 18, 21, 54]
case("kda", "packed", RECURRENT + ", each document alone",
     lambda initial_state, **x: per_document(recurrent, cu, x, {"initial_state": initial_state}),
     sample("packed", 1, 54, 2, 1, 4, 3, N=4), index={"cu_seqlens": i32(cu)})
