"""MoBA on block_sparse.  Oracle: the naive form that MoBA's authors published.  Set MOBA to the folder of
`moba_naive.py` in a checkout of github.com/MoonshotAI/MoBA (here of commit 61e456b)."""

import os
import sys

import torch

sys.path.insert(0, os.environ["MOBA"])
from moba_naive import moba_attn_varlen_naive

from common import Random, case, i32, in_fp64, repeat_heads

SOURCE = "MoonshotAI/MoBA 61e456b: moba.moba_naive.moba_attn_varlen_naive"


def moba(q, k, v, cu, block, top_k):
    H = q.shape[2]
    k, v = repeat_heads(k, H), repeat_heads(v, H)
    length = max(b - a for a, b in zip(cu[:-1], cu[1:]))
    o = moba_attn_varlen_naive(q[0], k[0], v[0], torch.tensor(cu), length, block, top_k)
    return {"o": o[None]}


def blocks_seen(q, k, cu, block, top_k):
    """The blocks that get weight: with the identity as values the result is the weights."""
    T, H = q.shape[1:3]
    mask = torch.zeros(1, H, T, -(-T // block), dtype=torch.uint8)
    eye = torch.eye(T)[None, :, None].expand(1, T, k.shape[2], T)
    with in_fp64(), torch.no_grad():
        p = torch.zeros(T, H, T)
        for h in range(H):  # one head at a time, whose width is that of its values
            hk = h // (H // k.shape[2])
            scale = (T / q.shape[3]) ** 0.25  # the source scales by the width of what it is given
            wide = lambda x: torch.cat([scale * x, torch.zeros(1, T, 1, T - x.shape[3])], -1)
            p[:, h] = moba(wide(q[:, :, h:h + 1]), wide(k[:, :, hk:hk + 1]), eye[:, :, :1], cu, block,
                           top_k)["o"][0, :, 0]
    for a, b in zip(cu[:-1], cu[1:]):
        for c in range(-(-(b - a) // block)):
            keys = slice(a + c * block, min(b, a + (c + 1) * block))
            mask[0, :, a:b, c] = (p[a:b, :, keys].sum(-1) > 0).T
    return mask


def moba_case(name, cu, H, Hk, K, block, top_k):
    r, T = Random("moba " + name), cu[-1]
    x = {"q": r.normal(1, T, H, K), "k": r.normal(1, T, Hk, K), "v": r.normal(1, T, Hk, K)}
    index = {"block_mask": blocks_seen(x["q"], x["k"], cu, block, top_k)}
    if len(cu) > 2:
        index["cu_seqlens"] = i32(cu)
    case("block_sparse", name, SOURCE, lambda **x: moba(**x, cu=cu, block=block, top_k=top_k), x,
         {"block": block, "by_token": True}, index)


moba_case("moba", [0, 41], 4, 2, 4, block=4, top_k=3)
moba_case("moba_packed", [0, 1, 6, 30, 47], 2, 2, 4, block=4, top_k=3)
