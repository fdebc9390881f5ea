"""Command line, benchmark and reports."""
