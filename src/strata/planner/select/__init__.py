"""Exact choice of one candidate per node of a graph with costs on its edges."""
