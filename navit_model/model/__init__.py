"""The NaViT itself and what stands on its tokens: embedding, positions, attention, encoder, pooling, text tower, heads.

Takes: a `PackedBatch` on a device. Gives: logits, features, boxes or maps, of static shapes. May not know: losses, runs,
files, or how a batch was made; `NaViT`'s doors to `use` and `weights` import those rooms when they are opened.
"""
