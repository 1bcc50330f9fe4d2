"""Encoded batches to packed ones by another decoder than the engine's, on a GPU or on the CPU: what all such decoders share.

    renderer   batches in, batches out; what goes which way
    decoding   the thread that keeps the decoder busy
    others     the images that the decoder does not get
    tokens     where each kept token lies in its image as stored
    patchify   resized images to patches in their slots; `kernel` is the same for GPUs

A decoder is a `Runs`: see `renderer.Runs`. `dali/` beside this folder is one, `nvjpeg/` another.
"""
