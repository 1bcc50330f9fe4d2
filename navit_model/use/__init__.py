"""What is done with a trained model: predict, embed, probe, finetune, export, zero-shot.

Takes: a checkpoint or saved weights, and images. Gives: answers. May not know: how a run trains, except `finetune`, which
starts one.
"""
