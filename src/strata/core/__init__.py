"""Dtypes, symbolic dims, errors, knobs, registries: what every other package uses. Standard library only."""
