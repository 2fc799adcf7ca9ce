"""What the oracle scripts share: fp64 evaluation, packed documents, and the file format.

A case is a function of named fp64 tensors.  `case` runs it, draws output gradients, takes the input
gradients by autograd and writes <operation>_<name>.h5 beside this file (README.md has the format).
"""

import contextlib
import os
import sys
import warnings
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import h5py
import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


@contextlib.contextmanager
def in_fp64():
    """Libraries cast to fp32 inside their reference code; here those casts go to fp64 instead."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


@contextlib.contextmanager
def without_fla():
    """transformers prefers fla's GPU kernels where fla is installed; this hides it during an import."""
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fla"}
    for name in hidden:
        del sys.modules[name]
    sys.modules["fla"] = None
    try:
        yield
    finally:
        del sys.modules["fla"]
        sys.modules.update(hidden)


@contextlib.contextmanager
def recorded_softmax():
    """Lists the (argument, result) of every softmax taken inside, for reading the log-sum-exp."""
    softmax, calls = torch.nn.functional.softmax, []

    def recording(x, *args, **kwargs):
        y = softmax(x, *args, **kwargs)
        calls.append((x, y))
        return y

    torch.nn.functional.softmax = recording
    try:
        yield calls
    finally:
        torch.nn.functional.softmax = softmax


class Random:
    """Seeded by a name, so that a case keeps its numbers when others are added."""

    def __init__(self, name):
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.generator) * scale

    def uniform(self, *shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator)

    def permutation(self, n):
        return torch.randperm(n, generator=self.generator)

    def unit(self, *shape):
        return torch.nn.functional.normalize(self.normal(*shape), dim=-1)

    def log_decay(self, *shape, mean=0.1):
        """Log decays <= 0, an exact 0 in about one entry of ten, -30 in about one of twenty."""
        g = -mean * self.uniform(*shape, high=2.0)
        draw = self.uniform(*shape)
        g[draw < 0.1] = 0.0
        g[draw > 0.95] = -30.0
        return g


def repeat_heads(x, heads):
    """[B, T, Hk, *] to [B, T, heads, *]: head h reads key head h / (heads / Hk)."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def per_document(function, cu_seqlens, tokens, states=None):
    """Runs `function` on each document alone; `tokens` are cut along dim 1, `states` have a row each."""
    states, parts = states or {}, []
    for n, (a, b) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:])):
        mine = {name: x[:, a:b] for name, x in tokens.items()}
        mine.update({name: x[n : n + 1] for name, x in states.items()})
        parts.append(function(**mine))
    along = lambda name: 0 if name.startswith("final") else 2 if name == "lse" else 1
    return {name: torch.cat([p[name] for p in parts], along(name)) for name in parts[0]}


def version(*modules):
    return ", ".join(f"{m.__name__} {m.__version__}" for m in modules)


def write(path, attributes, groups, options=None):
    with h5py.File(path, "w", libver=("v108", "v108")) as file:  # any HDF5 from 1.8 on reads it
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        for group, tensors in groups.items():
            g = file.create_group(group)
            for name, x in tensors.items():
                g.create_dataset(name, data=np.ascontiguousarray(x.detach().numpy()))
        if options is not None:
            g = file.create_group("options")
            for name, value in options.items():
                if isinstance(value, bool):
                    value = np.uint8(value)
                elif isinstance(value, int):
                    value = np.int64(value)
                elif isinstance(value, float):
                    value = np.float64(value)
                else:
                    value = np.bytes_(value)
                g.attrs[name] = value
    print(f"{os.path.getsize(path):7d}  {os.path.basename(path)}")


def case(operation, name, source, function, inputs, options=None, index=None, tolerance=None):
    """function(**inputs) -> dict of outputs; index tensors are saved, and known to the function already."""
    random = Random(f"{operation} {name} gradients")
    leaves = {k: x.detach().clone().double().requires_grad_() for k, x in inputs.items()}
    with in_fp64():
        outputs = function(**leaves)
    smooth = {k: y for k, y in outputs.items() if y.is_floating_point()}
    for k, y in smooth.items():
        assert y.dtype == torch.float64, (operation, name, k, y.dtype)
    # Where an output is -inf (the log-sum-exp of a row that sees no key) its gradient is 0.
    draws = {k: random.normal(*y.shape) * torch.isfinite(y) for k, y in smooth.items()}
    pairs = [(y, draws[k]) for k, y in smooth.items() if y.requires_grad]
    with in_fp64():
        torch.autograd.backward([y for y, _ in pairs], [d for _, d in pairs])
    for k, x in leaves.items():
        assert x.grad is None or bool(torch.isfinite(x.grad).all()), (operation, name, k)
    attributes = {"operation": operation, "source": source}
    if tolerance is not None:
        attributes["tolerance"] = float(tolerance)
    groups = {
        "inputs": {**leaves, **(index or {})},
        "outputs": outputs,
        "grad_outputs": {"d" + ("out" if k == "o" else k): d for k, d in draws.items()},
        "gradients": {"d" + k: x.grad for k, x in leaves.items() if x.grad is not None},
    }
    write(os.path.join(HERE, f"{operation}_{name}.h5"), attributes, groups, options or {})


def i32(values):
    return torch.as_tensor(values).to(torch.int32)
