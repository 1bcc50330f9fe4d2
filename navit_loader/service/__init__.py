"""Batches over ZeroMQ: the daemon, what client and daemon say to each other, keys, shared memory, log and metrics.

Takes: requests that name a batch, and engines. Gives: that batch, whoever asks and however often. May not know: how batches
are ordered into epochs for a trainer, or what is learnt. The client's loader is in `deliver/`; its socket (`connection`,
`endpoint`) is here, beside the daemon's.
"""
