"""The selective scan of Mamba.  Oracles: transformers' sequential scan, and for an initial state its
one-token update, applied token by token."""

import torch
import transformers
from transformers.models.mamba.modeling_mamba import (mamba_selective_scan,
                                                      mamba_selective_state_update)

from common import Random, case, i32, per_document, version

WHERE = f"{version(transformers, torch)}: transformers.models.mamba.modeling_mamba."


def sample(name, B, T, E, K, N=None, without=()):
    r = Random("selective_scan " + name)
    x = {"x": r.normal(B, T, E), "dt": r.normal(B, T, E), "A_log": r.uniform(E, K, low=-1.0, high=2.0),
         "B": r.normal(B, T, K), "C": r.normal(B, T, K), "D": r.normal(E), "z": r.normal(B, T, E),
         "dt_bias": r.uniform(E, low=-3.0, high=0.0)}
    if T > 9:
        x["dt"][:, 4] = -30.0  # no step at all
        x["dt"][:, 9] = 15.0  # a step so long that the state is forgotten
    if N:
        x["initial_state"] = r.normal(N, E, K)
    return {name: t for name, t in x.items() if name not in without}


def channels_first(x):
    return None if x is None else x.transpose(1, 2)


def scan(x, dt, A_log, B, C, D=None, z=None, dt_bias=None):
    y, h = mamba_selective_scan(
        channels_first(x), channels_first(dt), -torch.exp(A_log), channels_first(B), channels_first(C),
        D, channels_first(z), dt_bias, True, True)
    return {"o": y.transpose(1, 2), "final_state": h}


def steps(x, dt, A_log, B, C, D=None, z=None, dt_bias=None, initial_state=None):
    h, y = initial_state, []
    for t in range(x.shape[1]):
        h = h.clone()
        y.append(mamba_selective_state_update(
            h, x[:, t], dt[:, t], -torch.exp(A_log), B[:, t], C[:, t], D, dt_bias, True,
            None if z is None else z[:, t]))
    return {"o": torch.stack(y, 1), "final_state": h}


def main():
    name = WHERE + "mamba_selective_scan"
    case("selective_scan", "full", name, scan, sample("full", 1, 70, 4, 3))
    case("selective_scan", "bare", name, scan,
         sample("bare", 2, 33, 4, 3, without=("D", "z", "dt_bias")))
    case("selective_scan", "one", name, scan, sample("one", 2, 1, 4, 3))
    case("selective_scan", "wide", name, scan, sample("wide", 1, 17, 9, 16, without=("z",)))
    name = WHERE + "mamba_selective_state_update, token by token"
    case("selective_scan", "state", name, steps, sample("state", 2, 17, 5, 3, N=2))
    case("selective_scan", "state_one", name, steps, sample("state_one", 2, 1, 4, 3, N=2))
    cu = [0, 1, 18, 21, 54]

    def packed(initial_state, A_log, D, dt_bias, **tokens):
        function = lambda **x: steps(A_log=A_log, D=D, dt_bias=dt_bias, **x)
        return per_document(function, cu, tokens, {"initial_state": initial_state})

    case("selective_scan", "packed", name + ", each document alone", packed,
         sample("packed", 1, 54, 4, 3, N=4), index={"cu_seqlens": i32(cu)})


# The update writes its state in place, which autograd then needs as it was.
with torch.autograd.graph.allow_mutation_on_saved_tensors():
    main()
