"""From planned sequences to batches: the Rust renderer's threads, encoded batches, other decoders, images by hand.

Takes: layouts and an index's rows. Gives: the fields of `PackedBatch` as blocks of memory. May not know: who asks, over
which socket, or what is learnt from it.
"""
