"""Models of transformers that see through our encoder: their own weights, names and files, our attention over segments.

Takes: a vision-language model. Gives: the same model, whose tower runs packed. May not know: training, and what a language
model does with what it is told.
"""

from .swap import replace_vision_tower, restore_vision_tower

__all__ = ["replace_vision_tower", "restore_vision_tower"]
