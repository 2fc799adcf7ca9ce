"""Trains a tiny model for ten steps with Weft's operations, and checks a gradient by differences.

Cells are marked as editors and notebooks mark them (# %%). With torch the model uses autograd, else
numpy and weft.grad. Exits with 1 if something is not as it should be.
"""
# %% The operations, and what one of them takes
import sys

import numpy as np
import weft

print(f"libweft {weft.__version__}: {len(weft.operations())} operations")
print(weft.describe("delta"))

# %% A text of letters that follow a rule
LETTERS, WIDTH, TOKENS = 8, 16, 48
rng = np.random.default_rng(1)
text = np.array([t * t % LETTERS for t in range(TOKENS + 1)])
parameters = {
    "letters": rng.normal(size=(LETTERS, WIDTH)),
    "q": rng.normal(size=(WIDTH, WIDTH)) / 4,
    "k": rng.normal(size=(WIDTH, WIDTH)) / 4,
    "v": rng.normal(size=(WIDTH, WIDTH)) / 4,
    "out": rng.normal(size=(LETTERS, WIDTH)) / 4,
}


# %% The model with numpy: forward, then backward by hand, one weft.grad for each weft.op
def heads(x):
    return x.reshape(1, TOKENS, 1, WIDTH)


def rows(x):
    return x.reshape(TOKENS, WIDTH)


def loss_and_gradients(p):
    ids, targets = text[:-1], text[1:]
    x = weft.op("embedding", weight=p["letters"], ids=ids).y
    q, k, v = (weft.op("matmul", x=x, w=p[name]).y for name in "qkv")
    unit = weft.op("l2_norm", x=k).y
    mixed = dict(q=heads(q), k=heads(unit), v=heads(v), beta=np.full((1, TOKENS, 1), 0.5))
    o = weft.op("delta", **mixed).o
    end = dict(x=rows(o), w=p["out"], targets=targets)
    loss = weft.op("cross_entropy", **end).loss

    g = {}
    d_end = weft.grad("cross_entropy", {"loss": np.ones(1)}, **end)
    g["out"] = d_end.dw
    d = weft.grad("delta", {"o": heads(d_end.dx)}, **mixed)
    dk = weft.grad("l2_norm", {"y": rows(d.dk)}, x=k).dx
    dx = 0
    for name, dy in (("q", rows(d.dq)), ("k", dk), ("v", rows(d.dv))):
        back = weft.grad("matmul", {"y": dy}, x=x, w=p[name])
        g[name], dx = back.dw, dx + back.dx
    g["letters"] = weft.grad("embedding", {"y": dx}, weight=p["letters"], ids=ids).dweight
    return float(loss[0]), g


# %% Ten steps with numpy
losses = []
p = {name: value.copy() for name, value in parameters.items()}
for step in range(10):
    loss, gradients = loss_and_gradients(p)
    losses.append(loss)
    for name in p:
        p[name] -= 0.15 * gradients[name]
print("numpy:", " ".join(f"{loss:.4f}" for loss in losses))
good = losses[-1] < 0.8 * losses[0]

# %% The same with torch, which differentiates by itself
try:
    import torch
except ImportError:
    torch = None
    print("torch is not there; its cells do nothing")

if torch:
    p = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
    optimizer = torch.optim.SGD(p.values(), lr=0.15)
    ids, targets = torch.tensor(text[:-1]), torch.tensor(text[1:])
    torch_losses = []
    for step in range(10):
        x = weft.op("embedding", weight=p["letters"], ids=ids).y
        q, k, v = (weft.op("matmul", x=x, w=p[name]).y for name in "qkv")
        k = torch.nn.functional.normalize(k, dim=-1)
        beta = torch.full((1, TOKENS, 1), 0.5, dtype=torch.float64)
        o = weft.op("delta", q=heads(q), k=heads(k), v=heads(v), beta=beta).o
        loss = weft.op("cross_entropy", x=rows(o), w=p["out"], targets=targets).loss
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        torch_losses.append(loss.item())
    print("torch:", " ".join(f"{loss:.4f}" for loss in torch_losses))
    good = good and np.allclose(losses, torch_losses, rtol=1e-4)

# %% A gradient against central differences
inputs = {name: 0.4 * rng.normal(size=shape) for name, shape in
          dict(q=(1, 70, 2, 4), k=(1, 70, 2, 4), v=(1, 70, 2, 3), beta=(1, 70, 2)).items()}
do = rng.normal(size=(1, 70, 2, 3))
made = weft.grad("delta", {"o": do}, **inputs)
for name, value in inputs.items():
    way = rng.normal(size=value.shape)
    up, down = (np.sum(do * weft.op("delta", **{**inputs, name: value + h * way}).o)
                for h in (1e-5, -1e-5))
    expected = np.sum(getattr(made, "d" + name) * way)
    error = abs((up - down) / 2e-5 - expected) / abs(expected)
    print(f"delta: d{name} against differences: relative error {error:.1e}")
    good = good and error < 1e-6

# %%
print("all is well" if good else "FAILED")
sys.exit(0 if good else 1)
