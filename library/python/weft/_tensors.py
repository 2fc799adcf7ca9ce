"""numpy arrays and torch tensors as DLPack tensors, and the library's results as either."""
import ctypes
import sys
import weakref

from ._library import CPU, CUDA, DLDataType, DLDevice, DLTensor, Error

# DLPack's codes: int 0, uint 1, float 2, bfloat 4, complex 5, bool 6.
_NUMPY_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_NUMPY_NAMES = {(2, 64): "f8", (2, 32): "f4", (0, 64): "i8", (0, 32): "i4", (1, 8): "u1"}


def kind_of(name, value):
    """ "torch" or "numpy"; anything else is refused by its name."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return "torch"
    if numpy is not None and isinstance(value, numpy.ndarray):
        return "numpy"
    raise Error(f"{name} is {type(value).__name__}; expected a numpy array or a torch tensor")


def _filled(shape, strides, pointer, code, bits, device):
    n = len(shape)
    sizes, steps = (ctypes.c_int64 * max(n, 1))(*shape), (ctypes.c_int64 * max(n, 1))(*strides)
    return DLTensor(data=pointer, device=DLDevice(*device), ndim=n, dtype=DLDataType(code, bits, 1),
                    shape=sizes, strides=steps, byte_offset=0)


def _from_numpy(name, array):
    import numpy
    if array.dtype.kind not in _NUMPY_CODES:
        raise Error(f"{name} holds {array.dtype}; expected numbers (bfloat16 is a dtype of torch)")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    size = array.dtype.itemsize
    if any(stride % size for stride in array.strides):
        array = numpy.ascontiguousarray(array)
    return array, _filled(array.shape, [stride // size for stride in array.strides],
                          array.ctypes.data, _NUMPY_CODES[array.dtype.kind], 8 * size, (CPU, 0))


def _from_torch(name, tensor):
    import torch
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise Error(f"{name} is a tensor of layout {tensor.layout}; expected a dense one")
    if tensor.device.type not in ("cpu", "cuda"):
        raise Error(f"{name} is on {tensor.device}; expected cpu or cuda")
    tensor = tensor.detach().resolve_neg().resolve_conj()
    bits = 8 * tensor.element_size()
    code = (6 if tensor.dtype is torch.bool else 4 if tensor.dtype is torch.bfloat16 else
            5 if tensor.dtype.is_complex else 2 if tensor.dtype.is_floating_point else
            1 if tensor.dtype is torch.uint8 else 0)
    device = (CUDA, tensor.device.index or 0) if tensor.device.type == "cuda" else (CPU, 0)
    return tensor, _filled(tuple(tensor.shape), tensor.stride(), tensor.data_ptr(), code, bits,
                           device)


def to_dlpack(name, value):
    """The memory that must live as long as the DLTensor, and the DLTensor."""
    return _from_torch(name, value) if kind_of(name, value) == "torch" else _from_numpy(name, value)


def as_index(name, value):
    """An index tensor as the operations take it: i32, or u8 for a mask."""
    kind = kind_of(name, value)
    text = str(value.dtype).replace("torch.", "")
    if text not in ("int64", "uint32", "uint64", "int16", "uint16", "int8"):
        return value
    low, high = -2**31, 2**31 - 1
    count = value.numel() if kind == "torch" else value.size
    if count and (int(value.min()) < low or int(value.max()) > high):
        raise Error(f"{name} holds numbers that 32 bits do not hold")
    if kind == "torch":
        import torch
        return value.to(torch.int32)
    return value.astype("i4")


_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def to_torch(managed):
    """A torch tensor of the library's memory, which it lets go at its end."""
    from torch.utils.dlpack import from_dlpack
    return from_dlpack(_capsule_new(ctypes.addressof(managed.contents), b"dltensor", None))


def to_numpy(managed):
    """A numpy array of the library's memory, which it lets go at its end."""
    import numpy
    tensor = managed.contents.dl_tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = numpy.dtype(_NUMPY_NAMES[tensor.dtype.code, tensor.dtype.bits])
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        managed.contents.deleter(managed)
        return numpy.empty(shape, dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(tensor.data)
    weakref.finalize(memory, managed.contents.deleter, managed)
    return numpy.frombuffer(memory, dtype).reshape(shape)
