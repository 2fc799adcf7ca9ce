"""The operations as Python functions: `op`, `grad`, and `ops` with a docstring for each."""
import collections
import ctypes
import difflib
import functools
import inspect
import keyword
import numbers

from . import _library as lib
from . import _tensors as tensors
from ._library import INDEX, INPUT, OUTPUT, SETTING, Error


def describe(operation):
    """What an operation reads, makes and can be told, as text."""
    lines = [f"weft.op({operation!r}, ...)", ""]
    titles = {INPUT: "Inputs", INDEX: "Index tensors (integers)", OUTPUT: "Outputs",
              SETTING: "Settings"}
    for kind, title in titles.items():
        rows = [row for row in lib.table(operation) if row.kind == kind]
        if not rows:
            continue
        lines.append(title)
        for row in rows:
            text = row.shape
            if kind == SETTING:
                text = f"= {row.standard}" if row.standard else ""
            notes = [row.help] if row.help else []
            if row.optional and kind in (INPUT, OUTPUT):
                notes.append("may be absent")
            if row.wide:
                notes.append("float32 beside bfloat16")
            lines.append(f"    {row.name:<15} {text:<18} {'; '.join(notes)}".rstrip())
    lines += ["", "Forms: " + ", ".join(lib.forms(operation)) + " (the last one trains)."]
    return "\n".join(lines)


def _text(name, value):
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Real):
        return repr(value)
    raise Error(f"{name} is {type(value).__name__}; expected a number, a word, True or False")


class _Arguments:
    """The named arguments of a call, sorted by what they are."""

    def __init__(self, operation, named):
        self.operation = operation
        self.table = {row.name: row for row in lib.table(operation) if row.kind != OUTPUT}
        self.tensors, self.settings = {}, {}
        for name, value in named.items():
            if name not in self.table:
                near = difflib.get_close_matches(name, self.table, 1, 0)
                raise Error(f"{operation}: unknown argument {name!r}; did you mean {near[0]!r}? "
                            f"known: {', '.join(self.table)}")
            row = self.table[name]
            if row.kind == SETTING:
                self.settings[name] = _text(f"{operation}: {name}", value)
            elif value is not None:
                self._add(f"{operation}: {name}", row, value)
        kinds = {tensors.kind_of(name, value): name for name, value in self.tensors.items()}
        if len(kinds) > 1:
            raise Error(f"{operation}: {kinds['numpy']} is a numpy array and {kinds['torch']} a "
                        "torch tensor; expected one kind")
        self.kind = next(iter(kinds), "numpy")

    def _add(self, where, row, value):
        tensors.kind_of(where, value)
        self.tensors[row.name] = tensors.as_index(where, value) if row.kind == INDEX else value

    def is_input(self, name):
        return self.table[name].kind == INPUT


def _named_tensors(operation, values):
    """The C array of named tensors, and what must live as long as it does."""
    alive, rows = [], []
    for name, value in values.items():
        memory, tensor = tensors.to_dlpack(f"{operation}: {name}", value)
        alive += [memory, tensor]
        rows.append(lib.NamedTensor(name.encode(), ctypes.pointer(tensor)))
    return (lib.NamedTensor * max(len(rows), 1))(*rows), alive


def _stream(values):
    for value in values.values():
        if getattr(value, "is_cuda", False):
            import torch
            return torch.cuda.current_stream(value.device).cuda_stream or None
    return None


def _run(function, operation, form, kind, values, settings, gradients=None, constants=()):
    """One call of the library; its results by name, numpy arrays or torch tensors."""
    library = lib.library()
    inputs, alive = _named_tensors(operation, values)
    given, more = _named_tensors(operation, gradients or {})
    texts = [lib.NamedText(name.encode(), text.encode()) for name, text in settings.items()]
    left_out = [name.encode() for name in constants]
    call = lib.Call(
        interface_version=lib.INTERFACE, operation=operation.encode(),
        form=form.encode() if form else None, inputs=inputs, input_count=len(values),
        settings=(lib.NamedText * max(len(texts), 1))(*texts), setting_count=len(texts),
        output_gradients=given, output_gradient_count=len(gradients or {}),
        constants=(ctypes.c_char_p * max(len(left_out), 1))(*left_out),
        constant_count=len(left_out), stream=_stream(values))
    result = ctypes.c_void_p()
    lib.raise_unless(function(ctypes.byref(call), ctypes.byref(result)))
    del alive, more
    wrap = tensors.to_torch if kind == "torch" else tensors.to_numpy
    try:
        made = {}
        for i in range(library.weft_result_count(result)):
            managed = library.weft_result_managed(result, i)
            if not managed:
                raise lib.Fault(lib.said())
            made[library.weft_result_name(result, i).decode()] = wrap(managed)
        return made
    finally:
        library.weft_result_free(result)


def _packed(operation, made, gradients=False):
    """A named tuple: outputs first; index tensors, which few operations write, only if written."""
    rows = lib.table(operation)
    if gradients:
        names = [row.gradient for row in rows if row.kind == INPUT]
    else:
        names = [row.name for row in rows if row.kind == OUTPUT]
        names += [row.name for row in rows if row.kind == INDEX and row.name in made]
    return _tuple(operation, gradients, tuple(names))(*(made.get(name) for name in names))


@functools.lru_cache(maxsize=None)
def _tuple(operation, gradients, names):
    return collections.namedtuple(operation + ("_gradients" if gradients else ""), names)


def op(operation, /, *, form=None, **named):
    """One operation on numpy arrays or torch tensors. `weft.describe(NAME)` says what it takes.

    Inputs, index tensors and settings are given by name. The result is a named tuple of all
    outputs; one that the settings leave out is None. `form` is "naive", "recurrent" or "chunkwise"
    (the standard, the one that trains). Torch tensors carry gradients. A mistake raises weft.Error.
    """
    a = _Arguments(operation, named)
    if a.kind == "torch":
        from . import _torch
        return _packed(operation, _torch.run(_run, a, form))
    return _packed(operation, _run(lib.library().weft_forward, operation, form, a.kind, a.tensors,
                                   a.settings))


def grad(operation, output_gradients, /, *, form=None, **named):
    """The gradients of the sum of all outputs times their gradients, as a named tuple (dq, dk, ...).

    `output_gradients` holds them by the name of the output: {"o": do}. One that is left out is
    zero. The gradient of an input that was left out is None.
    """
    a = _Arguments(operation, named)
    known = {row.name: row.gradient for row in lib.table(operation) if row.kind == OUTPUT}
    for name, value in output_gradients.items():
        if name not in known:
            raise Error(f"{operation}: unknown output {name!r}; known: {', '.join(known)}")
        if tensors.kind_of(f"{operation}: gradient of {name}", value) != a.kind:
            raise Error(f"{operation}: the gradient of {name} is of another kind than the inputs; "
                        "expected numpy arrays alone, or torch tensors alone")
    given = {known[name]: value for name, value in output_gradients.items()}
    return _packed(operation, _run(lib.library().weft_backward, operation, form, a.kind, a.tensors,
                                   a.settings, given), gradients=True)


def _parameters(operation):
    only = inspect.Parameter.KEYWORD_ONLY
    needed, optional = [], [inspect.Parameter("form", only, default=None)]
    for row in lib.table(operation):
        if row.kind == OUTPUT or keyword.iskeyword(row.name):
            continue
        if row.kind == INPUT and not row.optional:
            needed.append(inspect.Parameter(row.name, only))
        else:
            standard = row.standard if row.kind == SETTING else None
            optional.append(inspect.Parameter(row.name, only, default=standard))
    return needed + optional


class Operations:
    """Each operation as a function, with its table as its docstring: weft.ops.delta(q=q, ...)."""

    def __dir__(self):
        return list(lib.operations())

    def __getattr__(self, name):
        if name not in lib.operations():
            raise AttributeError(f"Weft has no operation {name!r}; known: "
                                 f"{', '.join(lib.operations())}")
        function = functools.partial(op, name)
        functools.update_wrapper(function, op)
        function.__name__ = function.__qualname__ = name
        function.__doc__ = describe(name)
        function.__signature__ = inspect.Signature(_parameters(name))
        self.__dict__[name] = function
        return function
