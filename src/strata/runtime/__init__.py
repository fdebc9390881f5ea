"""Loads and launches compiled programs. Never imports the compiler side."""
