"""Weft's operations on numpy arrays and torch tensors, forward and backward.

    import weft
    y = weft.op("delta", q=q, k=k, v=v, beta=beta)   # y.o, y.final_state
    help(weft.ops.delta)                             # what it reads, makes and can be told

Torch tensors that require gradients get them from `backward()` as from any torch function. For
numpy arrays, `weft.grad` gives the gradients.
"""
from ._calls import Operations, describe, grad, op
from ._library import Error, Fault, library_path, operations, version

__all__ = ["Error", "Fault", "describe", "grad", "library_path", "op", "operations", "ops",
           "version"]
__version__ = version()

ops = Operations()
