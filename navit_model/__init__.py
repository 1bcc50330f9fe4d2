"""navit's model: a compact NaViT over packed batches, with training, evaluation and inference."""

from .config import NaViTConfig
from .model import NaViT

__all__ = ["NaViT", "NaViTConfig"]
