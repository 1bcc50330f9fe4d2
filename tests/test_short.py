"""Kernels for short segments, as Triton's interpreter runs them on a CPU: equal to plain attention, forward and backward.

The interpreter is chosen when Triton is imported, so it runs in a process of its own; GPUs run them in `test_gpu.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

PROGRAM = """
import numpy as np, torch
import torch.nn.functional as F
from navit_model.model import short

rng = np.random.default_rng(0)
cases = [[256], [0, 1, 0], [63, 64, 65, 0], [31, 32, 33]] + [rng.integers(0, 140, 4).tolist() for _ in range(3)] + [[5, 70]]
for number, lengths in enumerate(cases):
    heads, channels = (1, 2)[number % 2], short.CHANNELS[number % 4]
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    total = sum(lengths)
    torch.manual_seed(number)
    # As the model gives them: values are a slice of the joint projection; the gradient comes as it likes.
    qkv = 3 * torch.randn(total, 3, heads, channels)
    if number == 7:  # all scores far below 0, which is what stands beyond a segment's end
        qkv[:, :2] = 3.2 + torch.randn(total, 2, heads, channels) / 20
        qkv[:, 1] *= -1
    q, k, v = (x.requires_grad_() for x in (qkv[:, 0].contiguous(), qkv[:, 1].contiguous(), qkv[:, 2]))
    grad = torch.randn(channels, heads, total).permute(2, 1, 0)
    assert not v.is_contiguous() or total * heads == 0 or total == 1
    out = short.attend(q, k, v, cu, 256)
    found = (out, *torch.autograd.grad(out, (q, k, v), grad))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = []
    for start, end in zip(cu[:-1].tolist(), cu[1:].tolist()):
        if end > start:
            one = (x[start:end].transpose(0, 1) for x in exact)
            parts.append(F.scaled_dot_product_attention(*one).transpose(0, 1))
    plain = torch.cat(parts)
    wanted = (plain, *torch.autograd.grad(plain, exact, grad.double()))
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, wanted):
        # Of one token alone queries and keys have no gradient, but its parts round.
        error = float((x.double() - y).norm() / max(y.norm(), grad.norm()))
        assert error < (5e-6 if number < 7 else 5e-5), (lengths, name, error)
print("equal", len(cases))
"""


@pytest.mark.timeout(300)
def test_short_segments_equal_plain_attention_both_ways() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["equal", "8"], done.stdout + done.stderr
