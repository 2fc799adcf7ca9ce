"""An operation as a torch.autograd.Function."""
import torch

from . import _library as lib


class _Apply(torch.autograd.Function):
    """Inputs come one by one, so that torch sees them; `plan` says which is which."""

    @staticmethod
    def forward(ctx, plan, *values):
        made = plan.forward(dict(zip(plan.names, values)))
        ctx.plan, ctx.outputs = plan, list(made)
        ctx.save_for_backward(*values)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(y for y in made.values() if not y.is_floating_point()))
        plan.outputs = list(made)
        return tuple(made.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        wanted = [name for name, needs in zip(ctx.plan.names, ctx.needs_input_grad[1:]) if needs]
        given = {name: g for name, g in zip(ctx.outputs, gradients) if g is not None}
        if not given:
            return (None,) * (1 + len(ctx.plan.names))
        made = ctx.plan.backward(dict(zip(ctx.plan.names, ctx.saved_tensors)), given, wanted)
        return (None, *(made.get(name) if name in wanted else None for name in ctx.plan.names))


class _Plan:
    """Everything of a call but its tensors, which torch keeps itself."""

    def __init__(self, run, arguments, form):
        self.run, self.operation, self.form = run, arguments.operation, form
        self.names, self.settings = list(arguments.tensors), arguments.settings
        self.floats = [name for name in self.names if arguments.is_input(name)]
        rows = lib.table(arguments.operation)
        self.gradient_of = {row.name: row.gradient for row in rows if row.gradient}

    def _call(self, function, values, **more):
        return self.run(function, self.operation, self.form, "torch", values, self.settings, **more)

    def forward(self, values):
        return self._call(lib.library().weft_forward, values)

    def backward(self, values, given, wanted):
        constants = [name for name in self.floats if name not in wanted]
        made = self._call(lib.library().weft_backward, values,
                          gradients={self.gradient_of[name]: g for name, g in given.items()},
                          constants=constants)
        return {name: made.get(self.gradient_of[name]) for name in wanted}


def run(call, arguments, form):
    plan = _Plan(call, arguments, form)
    made = _Apply.apply(plan, *arguments.tensors.values())
    return dict(zip(plan.outputs, made))
