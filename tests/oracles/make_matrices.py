"""Matrix products, gathers, the loss and the router.  Oracles: torch, and transformers' routers and
auxiliary losses."""

import torch
import torch.nn.functional as F
import transformers
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func
from types import SimpleNamespace

from common import Random, case, i32, version

TORCH, HF = version(torch) + ": torch.nn.functional.", version(transformers, torch) + ": transformers.models."


def y(tensor):
    return {"y": tensor}


r = Random("matrices")
x, w, bias = r.normal(17, 6), r.normal(5, 6), r.normal(5)
case("matmul", "bias", TORCH + "linear", lambda x, w, bias: y(F.linear(x, w, bias)),
     {"x": x, "w": w, "bias": bias})
case("matmul", "plain", TORCH + "linear", lambda x, w: y(F.linear(x, w)), {"x": x[:1], "w": w})

ids = torch.cat([r.integers(9, 16), torch.tensor([0, 8, 8])])
case("embedding", "torch", TORCH + "embedding", lambda weight: y(F.embedding(ids, weight)),
     {"weight": r.normal(11, 4)}, index={"ids": i32(ids)})

offsets = [0, 5, 5, 6, 17]
case("grouped_matmul", "torch", TORCH + "linear on each group, one of them empty",
     lambda x, w: y(torch.cat([F.linear(x[a:b], w[e]) for e, (a, b) in
                               enumerate(zip(offsets[:-1], offsets[1:]))])),
     {"x": x, "w": r.normal(4, 5, 6)}, index={"offsets": torch.tensor(offsets)})

index = r.integers(9, 14)  # rows taken twice, and rows never taken
case("permute_rows", "plain", TORCH + "embedding", lambda x: y(F.embedding(index, x)),
     {"x": r.normal(11, 4)}, index={"index": i32(index)})
case("permute_rows", "weighted", TORCH + "embedding_bag, bags of one",
     lambda x, weight: y(F.embedding_bag(index[:, None], x, mode="sum", per_sample_weights=weight[:, None])),
     {"x": r.normal(11, 4), "weight": r.normal(14)}, index={"index": i32(index)})
slots = r.permutation(14).view(7, 2)
case("combine_rows", "torch", TORCH + "embedding_bag, weighted sums",
     lambda x, weight: y(F.embedding_bag(slots, x, mode="sum", per_sample_weights=weight)),
     {"x": r.normal(14, 4), "weight": r.normal(7, 2)}, index={"index": i32(slots.flatten())})


def loss(x, w, targets, bias=None, softcap=0.0):
    logits = F.linear(x, w, bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    lse = logits.logsumexp(-1)[targets != -100]
    return {"loss": F.cross_entropy(logits, targets, ignore_index=-100)[None], "z": lse.square().mean()[None]}


targets = r.integers(13, 33)
ignored = targets.clone()
ignored[[0, 4, 5, 6, 32]] = -100
name = TORCH + "linear, cross_entropy with ignore_index; z: mean of torch.logsumexp squared"
logits_of = {"x": r.normal(33, 6), "w": r.normal(13, 6), "bias": r.normal(13)}
case("cross_entropy", "all", name, lambda x, w: loss(x, w, targets),
     {n: logits_of[n] for n in "xw"}, index={"targets": i32(targets)})
case("cross_entropy", "ignored_bias", name, lambda **x: loss(**x, targets=ignored), logits_of,
     index={"targets": i32(ignored)})
case("cross_entropy", "softcap", name + ", logits c tanh(x / c)",
     lambda **x: loss(**x, targets=ignored, softcap=3.0), logits_of, {"softcap": 3.0},
     {"targets": i32(ignored)})
large = {"x": 40 * logits_of["x"][:5], "w": logits_of["w"]}
case("cross_entropy", "large", name, lambda x, w: loss(x, w, ignored[:5]), large,
     index={"targets": i32(ignored[:5])})


def route(logits, top_k, normalize):
    """Routers of transformers project first: with the identity as their weight they see these logits."""
    E = logits.shape[1]
    config = SimpleNamespace(num_experts_per_tok=top_k, num_local_experts=E, num_experts=E, hidden_size=E,
                             norm_topk_prob=normalize)
    router = (MixtralTopKRouter if normalize else Qwen3MoeTopKRouter)(config)
    _, weight, index = torch.func.functional_call(router, {"weight": torch.eye(E)}, (logits,))
    # The source counts every choice once a row, so that its fractions add up to top_k; ours to 1.
    balance = load_balancing_loss_func((logits,), E, top_k) / top_k
    z = router_z_loss_func(logits[None])
    return {"weight": weight, "balance": balance[None], "z": z[None], "index": i32(index)}


MIXTRAL = (HF + "mixtral.modeling_mixtral.MixtralTopKRouter, load_balancing_loss_func / top_k; "
           "switch_transformers' router_z_loss_func")
for name, R, E, top_k, normalize in (("mixtral", 17, 5, 2, True), ("top1", 9, 4, 1, True),
                                     ("unnormalised", 17, 6, 3, False)):
    source = MIXTRAL if normalize else MIXTRAL.replace(
        "mixtral.modeling_mixtral.MixtralTopKRouter", "qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter, mixtral's")
    case("router", name, source, lambda logits: route(logits, top_k, normalize),
         {"logits": Random("router " + name).normal(R, E)}, {"top_k": top_k, "normalize": normalize})


def forced(logits, index):
    """The same with the choice given: torch's gather in the place of topk."""
    E, p = logits.shape[1], logits.softmax(-1)
    weight = p.gather(1, index)
    fraction = torch.bincount(index.flatten(), minlength=E) / index.numel()
    z = router_z_loss_func(logits[None])
    return {"weight": weight / weight.sum(-1, keepdim=True), "balance": E * (fraction * p.mean(0)).sum()[None],
            "z": z[None]}


r = Random("router forced")
index = torch.stack([r.permutation(5)[:2] for _ in range(9)])
case("router", "forced", f"{version(torch)}: torch.softmax and torch.gather of the given experts; "
     "switch_transformers' router_z_loss_func", lambda logits: forced(logits, index),
     {"logits": r.normal(9, 5)}, {"top_k": 2, "forced": True}, {"index": i32(index)})
