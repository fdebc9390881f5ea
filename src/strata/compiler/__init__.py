"""The staged driver from graph module to compiled program, caches and the artifact on disk."""
