"""100 steps of Muon in fp64 on matrices of several shapes.  Oracle: torch.optim.Muon, whose iteration runs in
fp64 here in place of bf16.

One file, muon.h5: for each case the settings, and for each matrix its start, its gradients and what is left after
some of the steps.  A matrix of three dimensions is a stack, and torch has each of its matrices by itself."""

import os

import torch

from common import HERE, Random, version, write

STEPS, KEPT = 100, [1, 2, 10, 99, 100]
SHAPES = {"wide": (3, 7), "tall": (7, 3), "square": (4, 4), "row": (1, 5), "column": (5, 1), "stack": (2, 5, 3)}
#        momentum decay  like_adamw  lr
CASES = {"usual": (0.95, 0.1, 0, 0.02), "like_adamw": (0.95, 0.1, 1, 3e-3), "no_memory": (0.0, 1.0, 0, 0.05)}

random = Random("muon")
rates = random.uniform(STEPS, low=0.1, high=1.0)  # a factor on lr, as a schedule gives
start = {name: random.normal(*shape) for name, shape in SHAPES.items()}
# Of all sizes: a step does not depend on them.  Some are exactly 0.
gradients = {name: random.normal(STEPS, *shape) * 10 ** random.uniform(STEPS, *(1,) * len(shape), low=-4.0, high=2.0)
             for name, shape in SHAPES.items()}
gradients["wide"][:3] = 0.0


def run(momentum, decay, like_adamw, lr):
    leaves = {name: [m.clone().requires_grad_() for m in (w if w.dim() == 3 else [w])] for name, w in start.items()}
    optimizer = torch.optim.Muon([m for list in leaves.values() for m in list], lr=lr, weight_decay=decay,
                                 momentum=momentum, adjust_lr_fn="match_rms_adamw" if like_adamw else "original")
    joined = lambda name, list: torch.stack(list) if start[name].dim() == 3 else list[0]
    kept = {f"{kind}_{name}": [] for name in SHAPES for kind in ("parameters", "m")}
    for step in range(STEPS):
        for name, list in leaves.items():
            g = gradients[name][step]
            for m, own in zip(list, g if g.dim() == 3 else [g]):
                m.grad = own.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr * float(rates[step])
        bf16, torch.bfloat16 = torch.bfloat16, torch.float64
        optimizer.step()
        torch.bfloat16 = bf16
        if step + 1 in KEPT:
            for name, list in leaves.items():
                kept["parameters_" + name].append(joined(name, [m.detach().clone() for m in list]))
                kept["m_" + name].append(joined(name, [optimizer.state[m]["momentum_buffer"].clone() for m in list]))
    return {name: torch.stack(rows) for name, rows in kept.items()}


groups = {"inputs": {"rates": rates, "steps": torch.tensor(KEPT),
                     **{"start_" + n: w for n, w in start.items()},
                     **{"gradients_" + n: g for n, g in gradients.items()}}}
for name, settings in CASES.items():
    groups[name] = {"settings": torch.tensor(settings), **run(*settings)}
attributes = {"operation": "muon", "source": f"{version(torch)}: torch.optim.Muon, its iteration in fp64"}
write(os.path.join(HERE, "muon.h5"), attributes, groups)
