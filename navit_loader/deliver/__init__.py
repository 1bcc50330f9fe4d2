"""To the trainer: the loaders that a user iterates, in process or from daemons, and the step onto a device.

Takes: a configuration, and an index or endpoints. Gives: `PackedBatch` after `PackedBatch`, and a state of four values. May
not know: how pixels are made, what the daemon keeps, or what is learnt. What `next()` does is `loader`.
"""
