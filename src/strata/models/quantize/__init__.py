"""Quantised weights: codes of few bits from float matrices, and from checkpoints that others quantised.

::

    codes       matrix -> codes, scales, zeros (nearest, or the scale of least squared error); and back
    gptq        the same with errors that make up for each other, given second moments of the inputs
    calibrate   these moments, from a few texts
    stored      what a config.json says about quantised weights
    packed      codes in the tensors of a checkpoint: our own, GPTQ's, AWQ's, MLC's
    mlc         folders of MLC LLM
    convert     a model folder with quantised weights from one with floats

Checkpoints are read through the modules of this package one by one, so nothing is imported here.
"""
