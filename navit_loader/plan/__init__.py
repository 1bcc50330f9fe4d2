"""Which image, at which size, with which tokens, in which slot: `[plan]`, its identity, and what is planned of an index.

Takes: an index's columns and `[plan]`. Gives: layouts of sequences, `plan_id`, and how full they are. May not know: pixels,
files, batch size, ranks, sockets. The arithmetic itself is Rust (`packer_rs/src/plan/`).
"""
