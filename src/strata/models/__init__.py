"""Architectures as `nn` modules, their weight maps, and reading of model folders."""
