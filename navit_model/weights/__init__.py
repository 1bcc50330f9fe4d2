"""Weights in and out: folders of our own, and those of timm and transformers, name by name.

Takes: a folder, a module or a state dict. Gives: a `NaViT` that computes the same, or the name of what does not fit. May
not know: training.
"""
