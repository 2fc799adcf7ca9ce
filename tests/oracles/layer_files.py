"""What the scripts share that write a whole mixer: weights at which every term counts, a call with its
gradients, and the masks and rotary tables that attention of transformers is called with."""

import os

import torch
from torch.func import functional_call

from common import HERE, Random, in_fp64, write


def weights_of(module, name):
    """Not a training start: every term shall matter."""
    r, weights = Random("layer weights " + name), {}
    for n, p in module.named_parameters():
        last = n.split(".")[-1]
        if last == "A_log":
            w = r.uniform(*p.shape, low=-1.0, high=1.5)
        elif last == "dt_bias" or n == "dt_proj.bias":
            w = r.uniform(*p.shape, low=-3.0, high=0.0)
        elif "norm" in n or last == "D":
            w = 1 + r.normal(*p.shape, scale=0.3)
        elif "conv1d" in n:
            w = r.normal(*p.shape, scale=0.5)
        else:
            w = r.normal(*p.shape, scale=p.shape[-1] ** -0.5)
        weights[n] = w.requires_grad_()
    return weights


def layer(name, source, module, forward, B, T, D, options):
    """forward(call, x) -> output, with call(*arguments, **more) running the module on its weights."""
    weights, r = weights_of(module, name), Random("layer " + name)
    x = r.normal(B, T, D).requires_grad_()
    with in_fp64():
        out = forward(lambda *a, **k: functional_call(module, weights, a, k), x)
        assert out.dtype == torch.float64 and out.shape == x.shape
        dout = r.normal(*out.shape)
        out.backward(dout)
    assert all(w.grad is not None for w in weights.values()), name
    write(os.path.join(HERE, f"layer_{name}.h5"), {"operation": "layer_" + name, "source": source},
          {"weights": weights, "inputs": {"x": x}, "outputs": {"y": out}, "grad_outputs": {"dy": dout},
           "gradients": {"dx": x.grad, **{"d" + n: w.grad for n, w in weights.items()}}}, options)


def visible(mask, T):
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    return mask(0, 0, i, j).expand(T, T)


def additive(mask, T):
    return torch.zeros(T, T).masked_fill(~visible(mask, T), -torch.inf)[None, None]


def attend(call, x, mask, rotary):
    position = torch.arange(x.shape[1])[None]
    return call(x, position_embeddings=rotary(x, position), attention_mask=additive(mask, x.shape[1]))[0]
