"""What the programs of this folder share: the cases of a folder, read; the answers to them, written."""

import json
import os

import h5py
import numpy as np


class Case:
    """One case: numpy arrays by name (bf16 numbers as float32, which holds them exactly)."""

    def __init__(self, folder, entry):
        self.folder, self.file = folder, entry["file"]
        self.operation, self.name, self.dtype = entry["operation"], entry["case"], entry["dtype"]
        self.asked = list(entry["gradients"])  # "dq", ...
        with h5py.File(os.path.join(folder, self.file)) as f:
            self.inputs = {k: x[...] for k, x in f["inputs"].items()}
            self.grad_outputs = {k: x[...] for k, x in f["grad_outputs"].items()}
            attributes = f["options"].attrs.items() if "options" in f else []
            self.options = {k: x.item() if isinstance(x, np.generic) else x for k, x in attributes}

    def write(self, outputs, gradients, declined=None, inputs=None):
        """`inputs`: as they are now, so that a kernel that wrote into them is found."""
        with h5py.File(os.path.join(self.folder, "results", self.file), "w") as f:
            groups = {"outputs": outputs, "gradients": gradients, "inputs": inputs or {}}
            for group, tensors in groups.items():
                for name, x in tensors.items():
                    f[f"{group}/{name}"] = np.ascontiguousarray(x)
            if declined:
                f.attrs["declined"] = declined

    def decline(self, why):
        self.write({}, {}, declined=why)


def cases(folder):
    with open(os.path.join(folder, "cases.json")) as f:
        for entry in json.load(f)["files"]:
            yield Case(folder, entry)
