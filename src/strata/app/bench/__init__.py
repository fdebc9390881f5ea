"""``strata bench``: prefill and decode speed, beside the ceilings of the machine and beside other engines.

Prefill is bound by arithmetic: its fraction is the flop of the matmuls per second over the peak of the
instruction that the chosen kernels use. Decode is bound by memory: its fraction is bytes of weights per
step, times steps per second, over the bandwidth. (A model that fits into the caches can exceed it.) Ceilings
are measured beside each repetition, and peers run in turn with us: :mod:`.measure`.
"""
