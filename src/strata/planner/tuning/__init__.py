"""Tuning: find faster schedules by measuring them, and remember them.

::

    tasks      the distinct groups of a model, with their share of its run time
    space      random traces of a task (sketches), mutations of traces
    features   numbers that describe a scheduled function; model learns time from them
    search     evolution of the traces of one task; tuner spreads trials over tasks
    workers    separate processes that build and measure; remote: the same on other machines, through Ray
    database   one file of measured traces, which every later compile offers as candidates
"""
