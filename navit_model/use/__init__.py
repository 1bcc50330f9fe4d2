"""What is done with a trained model: lists of images, predict, embed, probe, finetune, export, zero-shot.

Takes: a checkpoint or saved weights, and images. Gives: answers. May not know: how a run trains, except `finetune`, which
starts one.
"""
