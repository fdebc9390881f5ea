"""Quantised weights: codes of few bits from float matrices, and from checkpoints that others quantised.

::

    codes       matrix -> codes, scales, zeros (nearest, or the scale of least squared error); and back
"""
