"""Graph IR: typed SSA over tensors, its op table, text, checker and interpreter."""
