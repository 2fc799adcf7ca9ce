"""Answers the cases of `delta` with PyTorch: a loop over tokens, gradients by autograd.

    weft cases delta cases && python torch_delta.py cases && weft judge cases
"""

import sys

import torch

from answers import cases


def document(q, k, v, beta, g, S, scale):
    """One document [B, T, H, *] from state S [B, H, K, V]."""
    rows = []
    for t in range(q.shape[1]):
        if g is not None:
            S = S * g[:, t, :, None, None].exp()
        missing = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * missing)
        rows.append(scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(rows, 1), S


def delta(options, cu_seqlens, q, k, v, beta, g=None, initial_state=None):
    H, K, V = v.shape[2], q.shape[3], v.shape[3]
    q, k = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    scale = options["scale"] or K**-0.5
    borders = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    N = q.shape[0] if cu_seqlens is None else len(borders) - 1
    S = q.new_zeros(N, H, K, V) if initial_state is None else initial_state
    o, states = [], []
    for n, (a, b) in enumerate(zip(borders, borders[1:])):
        mine = [None if x is None else x[:, a:b] for x in (q, k, v, beta, g)]
        part, state = document(*mine, S if cu_seqlens is None else S[n : n + 1], scale)
        o.append(part)
        states.append(state)
    outputs = {"o": torch.cat(o, 1)}
    if options["return_state"]:
        outputs["final_state"] = torch.cat(states)
    return outputs


for case in cases(sys.argv[1]):
    if case.operation != "delta":
        case.decline("not written")
        continue
    x = {name: torch.tensor(a) for name, a in case.inputs.items()}
    cu_seqlens = x.pop("cu_seqlens", None)
    leaves = {name: t.requires_grad_() for name, t in x.items()}
    outputs = delta(case.options, cu_seqlens, **leaves)
    given = [torch.tensor(case.grad_outputs["dout" if name == "o" else "d" + name])
             for name in outputs]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), given,
                                    materialize_grads=True)
    case.write({name: y.detach().numpy() for name, y in outputs.items()},
               {"d" + name: d.numpy() for name, d in zip(leaves, gradients)},
               inputs={name: t.detach().numpy() for name, t in leaves.items()})
