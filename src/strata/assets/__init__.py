"""Data that the package ships."""

from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "demo_model"
"""A small Llama-architecture model of Python code, as a Hugging Face folder; see its README.md."""
