"""Loop IR: loops, blocks and vectors over buffers, its text, checker and interpreter."""
