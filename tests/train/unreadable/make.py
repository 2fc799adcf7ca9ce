"""Makes the files beside it, for operation_file_test.cpp: calls of `weft op` in which something stands that
no tensor and no option can be made of. Each is whole but for that."""
import pathlib

import h5py
import numpy as np

HERE = pathlib.Path(__file__).parent
SHAPE = (1, 3, 1)


def inputs():
    x = np.arange(6.0).reshape(1, 3, 1, 2) / 10
    return {"q": x, "k": x + 0.1, "v": x - 0.2, "beta": np.full(SHAPE, 0.5)}


def records(one, fields):
    return np.full(SHAPE, np.array(one, fields), fields)


def put(file, name, kind):
    if kind == "long_double":
        file.create_dataset(name, data=np.full(SHAPE, -0.5, np.longdouble))
    elif kind == "complex":  # as a record of r and i, which every version of HDF5 knows
        file.create_dataset(name, data=records((-0.5, 0), [("r", "<f8"), ("i", "<f8")]))
    elif kind == "record":
        file.create_dataset(name, data=records((-0.5, 1), [("gate", "<f8"), ("n", "<i4")]))
    elif kind == "text":
        file.create_dataset(name, data="-0.5")
    elif kind == "nine_dimensions":
        file.create_dataset(name, data=np.full((1,) * 9, -0.5))
    elif kind == "group":
        file.create_group(name)
    elif kind == "empty":
        file.create_dataset(name, dtype="f8")
    elif kind == "lists":
        file.create_dataset(name, (3,), dtype=h5py.vlen_dtype(np.float64))
    elif kind == "broken_link":
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == "missing_file":
        file[name] = h5py.ExternalLink("no_such_file.h5", "g")


def write(name, fill, oldest="v110"):
    with h5py.File(HERE / f"{name}.h5", "w", libver=(oldest, "v110")) as file:
        fill(file)


KINDS = ["long_double", "complex", "record", "text", "nine_dimensions", "group", "empty", "lists",
         "broken_link", "missing_file"]


def flat(kind, name):
    def fill(file):
        for key, value in inputs().items():
            file[key] = value
        put(file, name, kind)
    return fill


def grouped(change):
    def fill(file):
        for key, value in inputs().items():
            file["inputs/" + key] = value
        file.attrs["operation"] = "delta"
        change(file)
    return fill


def option(value):
    def change(file):
        file.create_group("options").attrs["scale"] = value
    return grouped(change)


def huge(shape):
    def fill(file):
        for key, value in inputs().items():
            file[key] = value
        g = file.create_dataset("g", (1,) * len(shape), dtype="f8", maxshape=(None,) * len(shape),
                                chunks=(2**20,) + (1,) * (len(shape) - 1))
        g.resize(shape)
    return fill


for kind in KINDS:
    write("g_" + kind, flat(kind, "g"))
write("index", flat("text", "cu_seqlens"))
write("output_gradient", flat("complex", "dout"))
for place in ["inputs/g", "grad_outputs/dout", "outputs/o", "gradients/dq", "inputs", "options"]:
    if "/" in place:
        change = lambda file, place=place: put(file, place, "long_double")
        write("grouped_" + place.replace("/", "_"), grouped(change))
    else:
        write("not_a_group_" + place, flat("text", place))
write("option_empty", option(h5py.Empty("f8")))
write("option_record", option(np.array((0.5, 1), [("a", "<f8"), ("b", "<f8")])))
write("option_list", option([0.5, 0.25]))
write("option_tensor", grouped(lambda file: file.__setitem__("options/scale", 0.5)))
write("option_at_root", grouped(lambda file: file.attrs.__setitem__("scale", 0.5)))
write("beside_inputs", grouped(lambda file: put(file, "g", "text")))
write("misspelt_group", grouped(lambda file: file.__setitem__("grad_output/dout", 0.5)))
write("without_inputs", lambda file: (flat("group", "grad_outputs")(file)))
write("shape_2e62", huge((2**31, 2**31)))
write("shape_2e64", huge((2**64 - 2,)), "earliest")
write("shape_bytes", huge((2**61,)))
