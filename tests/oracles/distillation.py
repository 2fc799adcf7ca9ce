# The numbers of tests/train/distillation_test.cpp: the two losses and their gradients in fp64, by
# PyTorch's own functions.
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def wave(rows, columns, rate, size):
    return torch.sin(torch.arange(1, rows * columns + 1) * rate).reshape(rows, columns) * size


def shown(name, value):
    print(name, ", ".join(f"{x:.17g}" for x in value.detach().flatten().tolist()))


def logits(x, w, cap):
    z = x @ w.T
    return cap * torch.tanh(z / cap) if cap else z


R, D, V = 5, 3, 7
x = wave(R, D, 0.7, 1.3).requires_grad_()
w = wave(V, D, 0.3, 1.1).requires_grad_()
tx, tw = wave(R, 4, 1.1, 1.5), wave(V, 4, 0.9, 0.8)
for tau, cap, teacher_cap in ((1, 0, 0), (2, 1.5, 2.5)):
    q = F.log_softmax(logits(x, w, cap) / tau, -1)
    p = F.softmax(logits(tx, tw, teacher_cap) / tau, -1)
    loss = F.kl_div(q, p, reduction="batchmean") * tau**2
    dx, dw = torch.autograd.grad(loss, (x, w))
    shown(f"divergence tau {tau} loss", loss)
    shown("dx", dx)
    shown("dw", dw)
y = wave(R, D, 0.7, 1.3).requires_grad_()
target = wave(R, D, 0.4, 0.6)
loss = F.mse_loss(y, target) / target.square().mean()
shown("alignment loss", loss)
shown("dy", torch.autograd.grad(loss, y)[0])
