"""The router of documents as a mixture, its price and all gradients, of packed documents.  Oracle:
torch's `scaled_dot_product_attention` under a mask for each pattern, and torch's softmax."""

import os

import torch
import torch.nn.functional as F

from common import HERE, Random, i32, write

D, H, BLOCK, OPENING, FIRST = 12, 2, 4, 8, 1
PATTERNS = (0, 1, 3, 16)
FREE, PRICE = 0.1, 3.0
CU = (0, 21, 26, 60)


def seen(n, t, s):
    """Does token t of a document see its token s by a pattern of n blocks?"""
    if s > t:
        return False
    if t < OPENING:
        return True
    own, block = t // BLOCK, s // BLOCK
    front = [c for c in range(FIRST) if c != own][: max(0, n - 1)]
    near = [c for c in range(own, -1, -1) if c not in front][: n - len(front)]
    return n > 0 and block in front + near


def attention(q, k, v, n):
    T = q.shape[1]
    mask = torch.tensor([[seen(n, t, s) for s in range(T)] for t in range(T)])
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.where(mask.any(-1)[None, :, None], o, 0.0), mask.sum(-1).double()


r = Random("document router")
x = r.normal(1, CU[-1], D).requires_grad_()
w = {f"{name}_proj.weight": r.normal(D, D, scale=D**-0.5).requires_grad_() for name in "qkvo"}
w["router.weight"] = r.normal(len(PATTERNS), D, scale=0.5).requires_grad_()
w["router.bias"] = r.normal(len(PATTERNS), scale=0.5).requires_grad_()
parts, keys, all_keys = [], 0.0, 0.0
for a, b in zip(CU[:-1], CU[1:]):
    own = x[0, a:b]
    q, k, v = (F.linear(own, w[f"{n}_proj.weight"]).view(b - a, H, -1).transpose(0, 1) for n in "qkv")
    z = F.linear(own[:OPENING].mean(0), w["router.weight"], w["router.bias"])
    p = torch.softmax(z, -1)
    behind = (torch.arange(b - a) >= OPENING)[:, None]
    y = 0.0
    for i, n in enumerate(PATTERNS):
        o, count = attention(q, k, v, n)
        share = torch.where(behind, p[i], float(i == len(PATTERNS) - 1))
        y = y + share * o.transpose(0, 1).reshape(b - a, D)
        keys = keys + (share[:, 0] * count).sum()
    all_keys += (b - a) * (b - a + 1) / 2
    parts.append(F.linear(y, w["o_proj.weight"]))
out = torch.cat(parts)[None]
cost = PRICE * F.relu(keys / all_keys - FREE)
dy = r.normal(*out.shape)
((out * dy).sum() + cost).backward()
write(os.path.join(HERE, "layer_document_router.h5"),
      {"operation": "layer_document_router", "source": f"torch {torch.__version__}: scaled_dot_product_attention"},
      {"weights": w, "inputs": {"x": x, "cu_seqlens": i32(list(CU))}, "outputs": {"y": out, "price": cost[None]},
       "grad_outputs": {"dy": dy}, "gradients": {"dx": x.grad, **{"d" + n: t.grad for n, t in w.items()}}},
      {"heads": H, "block": BLOCK, "opening": OPENING, "first_blocks": FIRST, "free": FREE, "price": PRICE})
