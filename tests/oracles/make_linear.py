"""Linear attention with no decay, a fixed decay and a gate per head.  Oracles: fla's naive forms and
transformers' Mamba-2 scan."""

import fla
import torch
import transformers
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from common import Random, case, i32, per_document, repeat_heads, version

FLA, HF = version(fla, torch), version(transformers, torch)


def sample(name, B, T, H, Hk, K, V, N=None, positive=False):
    r = Random("linear " + name)
    x = {"q": r.normal(B, T, Hk, K), "k": r.normal(B, T, Hk, K), "v": r.normal(B, T, H, V)}
    if positive:  # elu(x) + 1, so that the denominator is a sum of positive numbers
        for n in "qk":
            x[n] = torch.nn.functional.elu(x[n]) + 1
    if N:
        x["initial_state"] = r.normal(N, H, K, V, scale=0.5)
    return r, x


def plain(q, k, v, initial_state=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    o, s = naive_recurrent_linear_attn(q, k, v, None, initial_state, True)
    return {"o": o, "final_state": s}


def normalised(q, k, v, initial_state=None, initial_z=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    start = None if initial_state is None else (initial_state, initial_z[:, None])
    o, (s, z) = naive_recurrent_linear_attn(q, k, v, None, start, True, normalize=True)
    return {"o": o, "final_state": s, "final_z": z[:, 0]}


def gated(q, k, v, g, initial_state=None, scale=None):
    q, k = repeat_heads(q, v.shape[2]), repeat_heads(k, v.shape[2])
    o, s = naive_recurrent_simple_gla(q, k, v, g, scale, initial_state, True)
    return {"o": o, "final_state": s}


def fixed(q, k, v, log_gamma, initial_state=None):
    g = log_gamma.expand(*v.shape[:2], -1)
    return gated(q, k, v, g, initial_state)


def retention(q, k, v):
    H = v.shape[2]
    q, k, v = repeat_heads(q, H).transpose(1, 2), repeat_heads(k, H).transpose(1, 2), v.transpose(1, 2)
    return {"o": naive_retention(q, k, v).transpose(1, 2)}


def mamba2(q, k, v, g, initial_state):
    # A = -1 and dt = -g, so that dt * A = g; x = v / dt, so that dt * x = v.
    dt = -g
    o, s = mamba2_chunk_scan(
        v / dt[..., None], dt, -torch.ones(v.shape[2]), k, q, 16,
        initial_states=initial_state.transpose(2, 3), return_final_states=True)
    return {"o": o, "final_state": s.transpose(2, 3)}


LINEAR = f"{FLA}: fla.ops.linear_attn.naive.naive_recurrent_linear_attn"
GLA = f"{FLA}: fla.ops.simple_gla.naive.naive_recurrent_simple_gla"

_, x = sample("plain", 2, 33, 2, 2, 4, 3)
case("linear", "plain", LINEAR, plain, x)
_, x = sample("plain_state", 2, 17, 4, 2, 4, 3, N=2)
case("linear", "plain_state", LINEAR + ", heads repeated", plain, x)
_, x = sample("normalised", 1, 70, 1, 1, 4, 3, positive=True)
case("linear", "normalised", LINEAR + " with normalize", normalised, x,
     {"normalize": True, "eps": 1e-10})
r, x = sample("normalised_state", 2, 17, 4, 2, 4, 3, N=2, positive=True)
x["initial_z"] = r.uniform(2, 4, 4, low=0.5, high=2.0)
case("linear", "normalised_state", LINEAR + " with normalize and a state, heads repeated", normalised, x,
     {"normalize": True, "eps": 1e-10})

_, x = sample("retention", 1, 70, 3, 3, 4, 3)
log_gamma = torch.log1p(-torch.pow(2.0, -5.0 - torch.arange(3)))
for name, x in (("retention", x), ("retention_one", sample("retention_one", 2, 1, 3, 3, 4, 3)[1])):
    # The decay is a constant of the source, so that there is no gradient of it to compare.
    x["log_gamma"] = log_gamma
    case("linear", name, f"{FLA}: fla.ops.retention.naive.naive_retention",
         lambda q, k, v, log_gamma: retention(q, k, v), x)

r, x = sample("fixed_state", 1, 33, 4, 2, 4, 3, N=1)
x["log_gamma"] = torch.tensor([0.0, -0.03, -0.5, -30.0])
case("linear", "fixed_state", GLA + " with a constant gate, heads repeated", fixed, x)

for name, shape in (("gated", (1, 70, 2, 2, 4, 3, 1)), ("gated_groups", (2, 17, 4, 2, 4, 3, 2)),
                    ("gated_one", (2, 1, 2, 1, 5, 4, 2))):
    r, x = sample(name, *shape)
    x["g"] = r.log_decay(*x["v"].shape[:3])
    case("linear", name, GLA, gated, x)
r, x = sample("gated_scale", 1, 17, 2, 2, 4, 3)
x["g"] = r.log_decay(1, 17, 2, mean=2.0)
case("linear", "gated_scale", GLA, lambda **x: gated(**x, scale=0.3), x, {"scale": 0.3})

r, x = sample("mamba2", 1, 33, 4, 2, 4, 3, N=1)
x["g"] = -r.uniform(1, 33, 4, low=0.001, high=3.0)
case("linear", "mamba2", f"{HF}: transformers.models.mamba2.modeling_mamba2.mamba2_chunk_scan, "
     "q = C, k = B, v = dt x, g = dt A", mamba2, x, {"scale": 1.0})

# The normaliser as one more value column of ones: it forgets with the state.
def gated_normalised(q, k, v, g, initial_state, initial_z):
    extended = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    y = gated(q, k, extended, g, torch.cat([initial_state, initial_z[..., None]], -1))
    return {"o": y["o"][..., :-1] / (y["o"][..., -1:] + 1e-6),
            "final_state": y["final_state"][..., :-1], "final_z": y["final_state"][..., -1]}


r, x = sample("gated_normalised", 2, 17, 2, 1, 4, 3, N=2, positive=True)
x["g"] = r.log_decay(2, 17, 2)
x["initial_z"] = r.uniform(2, 2, 4, low=0.5, high=2.0)
case("linear", "gated_normalised", GLA + " on values with a column of ones", gated_normalised, x,
     {"normalize": True})

cu = [0, 1, 18, 21, 54]
for name, function, extra in (("plain_packed", plain, None), ("gated_packed", gated, "g"),
                              ("normalised_packed", normalised, None)):
    r, x = sample(name, 1, 54, 2, 1, 4, 3, N=4, positive=name[0] == "n")
    if extra:
        x["g"] = r.log_decay(1, 54, 2)
    if name[0] == "n":
        x["initial_z"] = r.uniform(4, 2, 4, low=0.5, high=2.0)

    def packed(function=function, **x):
        states = {n: x.pop(n) for n in list(x) if n.startswith("initial")}
        return per_document(function, cu, x, states)

    options = {"normalize": True, "eps": 1e-10} if name[0] == "n" else {}
    case("linear", name, (GLA if extra else LINEAR) + ", each document alone", packed, x, options,
         {"cu_seqlens": i32(cu)})
