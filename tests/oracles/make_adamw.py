"""200 steps of AdamW in fp64 under several settings.  Oracle: torch.optim.AdamW.

One file, adamw.h5: the gradients and rates that every case shares, and a group of results for each case.
The first 8 of the 11 numbers are decayed, the last 3 are not.
"""

import os

import torch

from common import HERE, Random, version, write

STEPS, DECAYED, OTHERS = 200, 8, 3
KEPT = [1, 2, 3, 10, 50, 100, 199, 200]
#        beta1  beta2   eps   decay  clip   lr
CASES = {
    "usual": (0.9, 0.95, 1e-8, 0.1, 0.0, 1e-2),
    "clipped": (0.9, 0.95, 1e-8, 0.1, 1.0, 1e-2),
    "never_clipped": (0.9, 0.999, 1e-8, 0.01, 1e6, 3e-3),
    "large_eps": (0.9, 0.99, 0.1, 0.1, 0.0, 1e-2),
    "strong_decay": (0.8, 0.9, 1e-6, 2.0, 0.5, 2e-2),
    "no_decay": (0.95, 0.999, 1e-8, 0.0, 0.0, 1e-2),
    "no_memory": (0.0, 0.0, 1e-3, 0.3, 0.0, 1e-2),
}

random = Random("adamw")
# From 1e-3 to 1e1 over the steps and the numbers, some exactly 0: the norm is on both sides of every clip.
size = 10 ** random.uniform(STEPS, 1, low=-2.0, high=0.5) * 10 ** random.uniform(DECAYED + OTHERS, low=-1.0, high=0.5)
gradients = (random.normal(STEPS, DECAYED + OTHERS) + 0.3) * size
gradients[:12, 2] = 0.0
gradients[150:, 9] = 0.0
rates = random.uniform(STEPS, low=0.1, high=1.0)  # a factor on lr, as a schedule gives
start = random.normal(DECAYED + OTHERS)


def run(beta1, beta2, eps, decay, clip, lr):
    leaves = [start[:DECAYED].clone().requires_grad_(), start[DECAYED:].clone().requires_grad_()]
    groups = [{"params": [leaves[0]], "weight_decay": decay}, {"params": [leaves[1]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, foreach=False)
    kept = {"parameters": [], "m": [], "v": []}
    for step in range(STEPS):
        g = gradients[step]
        norm = torch.linalg.vector_norm(g)  # clip_grad_norm_ adds 1e-6 to it, so it is left out
        if clip > 0 and norm > clip:
            g = g * (clip / norm)
        leaves[0].grad, leaves[1].grad = g[:DECAYED].clone(), g[DECAYED:].clone()
        for group in optimizer.param_groups:
            group["lr"] = lr * float(rates[step])
        optimizer.step()
        if step + 1 in KEPT:
            state = [optimizer.state[leaf] for leaf in leaves]
            kept["parameters"].append(torch.cat([leaf.detach() for leaf in leaves]))
            kept["m"].append(torch.cat([s["exp_avg"] for s in state]))
            kept["v"].append(torch.cat([s["exp_avg_sq"] for s in state]))
    return {name: torch.stack(rows) for name, rows in kept.items()}


groups = {"inputs": {"gradients": gradients, "rates": rates, "start": start, "steps": torch.tensor(KEPT)}}
for name, settings in CASES.items():
    groups[name] = {"settings": torch.tensor(settings), **run(*settings)}
attributes = {"operation": "adamw", "source": f"{version(torch)}: torch.optim.AdamW, foreach=False"}
write(os.path.join(HERE, "adamw.h5"), attributes, groups)
