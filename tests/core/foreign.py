"""Makes foreign.h5 beside it, for hdf5_test.cpp: types and layouts of HDF5 that Weft reads but never writes."""
import pathlib

import h5py
import numpy as np

with h5py.File(pathlib.Path(__file__).with_name("foreign.h5"), "w") as f:
    f["inputs/q"] = np.arange(6.0).reshape(2, 3)
    f["inputs/half"] = np.array([0, 0.5, -2], np.float16)
    f["inputs/mask"] = np.array([True, False])
    f["i8"] = np.array([-1, 5], np.int8)
    f["u16"] = np.array([65535], np.uint16)
    f["u32"] = np.array([2**32 - 1], np.uint32)
    f["big_endian"] = np.array([1.5, 2], ">f4")
    f["scalar"] = 3.5
    f["words"] = "no tensor"
    f.create_dataset("zipped", data=np.arange(1000), compression="gzip")
    options = f.create_group("options")
    options.attrs["causal"] = True
    options.attrs["scale"] = 0.125
    options.attrs["small"] = np.float32(0.5)
    options.attrs["window"] = np.uint8(3)
    options.attrs["name"] = "caf\u00e9"
    options.attrs["fixed"] = np.bytes_(b"fixed")
    options.attrs["names"] = ["a", "bc"]
    options.attrs["sizes"] = [1, 2]
    options.attrs["nothing"] = h5py.Empty("f")
