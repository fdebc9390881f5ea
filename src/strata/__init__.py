"""Strata: an LLM compiler in Python."""
