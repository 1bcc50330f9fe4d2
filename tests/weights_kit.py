"""Models of others as tests of weights compare with them. In: a model. Out: the same with weights of its own."""

from __future__ import annotations

import torch
from torch import nn


def shaken(model: nn.Module) -> nn.Module:
    """Every weight away from its first value, so that no term can be missed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()
