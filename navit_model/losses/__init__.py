"""What a batch's outputs are worth: sums of losses over images that are there, and the matching that detection needs.

Takes: outputs of the model and targets. Gives: scalars on the device. May not know: the model that made them, steps, ranks.
"""
