"""Normalisations over a row: RMS, layer, group, gated, L2.  Oracles: torch and transformers' modules."""

import torch
import torch.nn.functional as F
import transformers
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearRMSNormGated
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from common import Random, case, version, without_fla

with without_fla():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated, l2norm

TORCH, HF = version(torch), version(transformers, torch) + ": transformers.models."


def sample(name, R, D, *names, zero_row=False):
    r = Random("norm " + name)
    x = {"x": r.normal(R, D) + 0.5}
    if zero_row:
        x["x"][1] = 0.0
    for n in names:
        x[n] = r.normal(R, D) if n == "z" else r.normal(D)
    return x


def with_weight(module, weight, *arguments):
    """The module called with this tensor in the place of its parameter, so that a gradient comes back."""
    return torch.func.functional_call(module, {"weight": weight}, arguments)


def grouped(module, x, weight, z, groups):
    """A norm of one head, its weight shared by heads, as a norm over groups of a row."""
    split = lambda t: t.unflatten(-1, (groups, -1))
    return with_weight(module, weight.view(groups, -1), split(x), split(z)).flatten(-2)


def y(tensor):
    return {"y": tensor}


name = f"{TORCH}: torch.nn.functional.rms_norm"
case("rms_norm", "torch", name, lambda x, weight: y(F.rms_norm(x, weight.shape, weight, 1e-6)),
     sample("torch", 17, 12, "weight"))
case("rms_norm", "torch_bare", name, lambda x: y(F.rms_norm(x, x.shape[-1:], None, 1e-3)),
     sample("torch_bare", 5, 7, zero_row=True), {"eps": 1e-3})
case("rms_norm", "torch_groups", name + " over each group",
     lambda x, weight: y(F.rms_norm(x.unflatten(-1, (3, 4)), (4,), None, 1e-5).flatten(-2) * weight),
     sample("torch_groups", 9, 12, "weight"), {"eps": 1e-5, "groups": 3})
case("rms_norm", "llama", HF + "llama.modeling_llama.LlamaRMSNorm",
     lambda x, weight: y(with_weight(LlamaRMSNorm(12, 1e-6), weight, x)), sample("llama", 1, 12, "weight"))

name = f"{TORCH}: torch.nn.functional.layer_norm"
case("layer_norm", "torch", name,
     lambda x, weight, bias: y(F.layer_norm(x, weight.shape, weight, bias, 1e-5)),
     sample("layer", 17, 12, "weight", "bias"))
case("layer_norm", "torch_bare", name, lambda x: y(F.layer_norm(x, x.shape[-1:], None, None, 1e-3)),
     sample("layer_bare", 5, 7, zero_row=True), {"eps": 1e-3})
case("layer_norm", "group_norm", f"{TORCH}: torch.nn.functional.group_norm",
     lambda x, weight, bias: y(F.group_norm(x, 3, weight, bias, 1e-5)),
     sample("group", 9, 12, "weight", "bias"), {"groups": 3})

name = HF + "mamba2.modeling_mamba2.MambaRMSNormGated"
case("gated_norm", "mamba2", name,
     lambda x, z, weight: y(with_weight(MambaRMSNormGated(12, 12, 1e-5), weight, x, z)),
     sample("mamba2", 17, 12, "z", "weight"), {"eps": 1e-5, "gate_first": True})
case("gated_norm", "mamba2_groups", name,
     lambda x, z, weight: y(with_weight(MambaRMSNormGated(12, 4, 1e-5), weight, x, z)),
     sample("mamba2_groups", 9, 12, "z", "weight"), {"eps": 1e-5, "gate_first": True, "groups": 3})
name = HF + "qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated"
case("gated_norm", "qwen3_next", name,
     lambda x, z, weight: y(with_weight(Qwen3NextRMSNormGated(12, 1e-6), weight, x, z)),
     sample("qwen3_next", 17, 12, "z", "weight"), {"eps": 1e-6, "gate_first": False})
case("gated_norm", "qwen3_next_groups", name + " over each group",
     lambda x, z, weight: y(grouped(Qwen3NextRMSNormGated(4, 1e-6), x, weight, z, 3)),
     sample("qwen3_next_groups", 9, 12, "z", "weight"), {"eps": 1e-6, "groups": 3})
case("gated_norm", "qwen3_next_bare", name + ", weight one",
     lambda x, z: y(Qwen3NextRMSNormGated(7, 1e-6)(x, z)), sample("bare", 5, 7, "z"), {"eps": 1e-6})
case("gated_norm", "kimi_sigmoid", HF + "kimi_linear.modeling_kimi_linear.KimiLinearRMSNormGated",
     lambda x, z, weight: y(with_weight(KimiLinearRMSNormGated(12, 1e-6), weight, x, z)),
     sample("kimi", 9, 12, "z", "weight"), {"eps": 1e-6, "gate": "sigmoid"})

name = HF + "qwen3_next.modeling_qwen3_next.l2norm"
case("l2_norm", "qwen3_next", name, lambda x: y(l2norm(x)), sample("l2", 17, 6))
x = sample("l2_small", 5, 7, zero_row=True)
x["x"] *= 1e-3
case("l2_norm", "small", name, lambda x: y(l2norm(x, eps=1e-5)), x, {"eps": 1e-5})
