"""Loop IR: loops, blocks and vectors over buffers, its text, checker and interpreter."""

from . import library_externs as library_externs
