"""Answers the cases of `linear` with JAX: a scan over tokens, gradients by jax.vjp. It divides by no
sum of keys, and says so: the cases that ask for it are declined.

    weft cases linear cases && python jax_linear.py cases && weft judge cases
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from answers import cases

jax.config.update("jax_enable_x64", True)


def document(q, k, v, decay, S):
    """One document, tokens first: q, k [T, B, H, K], v [T, B, H, V], decay [T, B, H]."""

    def token(S, x):
        q, k, v, decay = x
        S = decay[..., None, None] * S + k[..., :, None] * v[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    S, o = jax.lax.scan(token, S, (q, k, v, decay))
    return o, S


def linear(options, borders, x):
    q, k, v = x["q"], x["k"], x["v"]
    B, T, H, V = v.shape
    K = q.shape[3]
    q, k = (jnp.repeat(y, H // y.shape[2], 2) for y in (q, k))
    log_decay = jnp.zeros((B, T, H), q.dtype)
    if "g" in x:
        log_decay += x["g"]
    if "log_gamma" in x:
        log_decay += x["log_gamma"]
    scale = options["scale"] or K**-0.5
    q, k, v, decay = (jnp.swapaxes(y, 0, 1) for y in (scale * q, k, v, jnp.exp(log_decay)))
    packed = borders is not None
    borders = borders if packed else [0, T]
    N = len(borders) - 1 if packed else B
    S = x["initial_state"] if "initial_state" in x else jnp.zeros((N, H, K, V), q.dtype)
    parts, states = [], []
    for n, (a, b) in enumerate(zip(borders, borders[1:])):
        o, state = document(*(y[a:b] for y in (q, k, v, decay)), S[n : n + 1] if packed else S)
        parts.append(o)
        states.append(state)
    outputs = {"o": jnp.swapaxes(jnp.concatenate(parts), 0, 1)}
    if options["return_state"]:
        outputs["final_state"] = jnp.concatenate(states)
    return outputs


for case in cases(sys.argv[1]):
    if case.operation != "linear":
        case.decline("not written")
        continue
    if case.options["normalize"]:
        case.decline("nothing is divided by the sum of keys")
        continue
    borders = case.inputs.pop("cu_seqlens", None)
    borders = None if borders is None else borders.tolist()
    x = {name: jnp.asarray(a) for name, a in case.inputs.items()}
    outputs, back = jax.vjp(lambda x: linear(case.options, borders, x), x)
    given = {name: jnp.asarray(case.grad_outputs["dout" if name == "o" else "d" + name])
             for name in outputs}
    (gradients,) = back(given)
    case.write({name: np.asarray(y) for name, y in outputs.items()},
               {"d" + name: np.asarray(d) for name, d in gradients.items()})
