"""Makes links.h5 beside it, for hdf5_test.cpp: links that no file of Weft has."""
import pathlib

import h5py
import numpy as np

with h5py.File(pathlib.Path(__file__).with_name("links.h5"), "w", libver=("earliest", "v110")) as f:
    f["x"] = np.arange(3.0)
    f["same"] = f["x"]  # a second name of the tensor
    loop = f.create_group("loop")
    loop["again"] = loop
    loop["twice"] = f
    loop["y"] = np.arange(2.0)
    f["nowhere"] = h5py.SoftLink("/none")
    f["elsewhere"] = h5py.ExternalLink("none.h5", "/x")
    step = f.create_group("doubled")  # 2^32 paths lead to the last group
    for _ in range(32):
        below = f.create_group(None)
        step["left"] = below
        step["right"] = below
        step = below
    step["z"] = 1.0
