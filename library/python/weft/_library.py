"""The shared library libweft by ctypes: its structures, its functions, its errors."""
import ctypes
import functools
import os
import pathlib

INTERFACE = 1  # the version of weft.h that this file was written for

INPUT, INDEX, OUTPUT, SETTING = range(4)
CPU, CUDA = 1, 2


class Error(ValueError):
    """A mistake in what was given, or a machine that has too little."""


class Fault(RuntimeError):
    """A fault of the library itself."""


class DLDevice(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int), ("device_id", ctypes.c_int)]


class DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", DLDevice), ("ndim", ctypes.c_int),
                ("dtype", DLDataType), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class DLManagedTensor(ctypes.Structure):
    pass


DLManagedTensor._fields_ = [("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p),
                            ("deleter", ctypes.CFUNCTYPE(None, ctypes.POINTER(DLManagedTensor)))]


class Field(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("kind", ctypes.c_int), ("optional", ctypes.c_int),
                ("wide", ctypes.c_int), ("shape", ctypes.c_char_p), ("gradient", ctypes.c_char_p),
                ("standard", ctypes.c_char_p), ("help", ctypes.c_char_p)]


class NamedTensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("tensor", ctypes.POINTER(DLTensor))]


class NamedText(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_char_p)]


class Call(ctypes.Structure):
    _fields_ = [("interface_version", ctypes.c_int), ("operation", ctypes.c_char_p),
                ("form", ctypes.c_char_p), ("inputs", ctypes.POINTER(NamedTensor)),
                ("input_count", ctypes.c_size_t), ("settings", ctypes.POINTER(NamedText)),
                ("setting_count", ctypes.c_size_t),
                ("output_gradients", ctypes.POINTER(NamedTensor)),
                ("output_gradient_count", ctypes.c_size_t),
                ("constants", ctypes.POINTER(ctypes.c_char_p)),
                ("constant_count", ctypes.c_size_t), ("stream", ctypes.c_void_p)]


def _candidates():
    named = os.environ.get("WEFT_LIBRARY")
    if named:
        return [named]
    here = pathlib.Path(__file__).resolve().parent
    return [str(path) for path in [here / "libweft.so"] if path.exists()] + [
        f"libweft.so.{INTERFACE}"]


@functools.lru_cache(maxsize=None)
def _found():
    tried = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path), path
        except OSError as error:
            tried.append(f"{path}: {error}")
    raise Error("the shared library of Weft was not found; install it (cmake --install), or name "
                "the file in WEFT_LIBRARY. Tried: " + "; ".join(tried))


@functools.lru_cache(maxsize=None)
def library():
    """The library, its version checked and its functions typed."""
    lib, path = _found()
    count, text = ctypes.POINTER(ctypes.c_size_t), ctypes.c_char_p
    result = ctypes.c_void_p
    signatures = {
        "weft_interface": (ctypes.c_int, []),
        "weft_version": (text, []),
        "weft_error": (text, []),
        "weft_operations": (ctypes.POINTER(text), [count]),
        "weft_fields": (ctypes.POINTER(Field), [text, count]),
        "weft_forms": (ctypes.POINTER(text), [text, count]),
        "weft_forward": (ctypes.c_int, [ctypes.POINTER(Call), ctypes.POINTER(result)]),
        "weft_backward": (ctypes.c_int, [ctypes.POINTER(Call), ctypes.POINTER(result)]),
        "weft_result_count": (ctypes.c_size_t, [result]),
        "weft_result_name": (text, [result, ctypes.c_size_t]),
        "weft_result_managed": (ctypes.POINTER(DLManagedTensor), [result, ctypes.c_size_t]),
        "weft_result_free": (None, [result]),
    }
    for name, (returns, takes) in signatures.items():
        if not hasattr(lib, name):
            raise Error(f"{path} has no {name}; expected the shared library of Weft")
        function = getattr(lib, name)
        function.restype, function.argtypes = returns, takes
        if name == "weft_interface" and function() != INTERFACE:
            raise Error(f"{path} has version {function()} of its interface, and this package was "
                        f"written for version {INTERFACE}; install both from one source")
    return lib


def library_path():
    """The file of the shared library that is used."""
    return _found()[1]


def version():
    """The version of the library, as "0.1.0"."""
    return library().weft_version().decode()


def said():
    """Why this thread's last call failed."""
    return library().weft_error().decode(errors="replace")


def raise_unless(status):
    if status:
        raise (Error if status == 2 else Fault)(said())


@functools.lru_cache(maxsize=None)
def operations():
    """The names of all operations."""
    count = ctypes.c_size_t()
    names = library().weft_operations(ctypes.byref(count))
    return tuple(names[i].decode() for i in range(count.value))


class Entry:
    """One row of an operation's table, as Python's own types."""

    def __init__(self, field):
        for name in ("name", "shape", "gradient", "standard", "help"):
            setattr(self, name, getattr(field, name).decode())
        self.kind, self.optional, self.wide = field.kind, bool(field.optional), bool(field.wide)


@functools.lru_cache(maxsize=None)
def table(operation):
    """The rows of an operation: inputs, index tensors, outputs, settings."""
    count = ctypes.c_size_t()
    fields = library().weft_fields(operation.encode(), ctypes.byref(count))
    if not fields:
        raise Error(said())
    return tuple(Entry(fields[i]) for i in range(count.value))


@functools.lru_cache(maxsize=None)
def forms(operation):
    count = ctypes.c_size_t()
    names = library().weft_forms(operation.encode(), ctypes.byref(count))
    if not names:
        raise Error(said())
    return tuple(names[i].decode() for i in range(count.value))
