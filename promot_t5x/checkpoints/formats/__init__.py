"""Checkpoints of every kind, opened alike: T5X's two formats, Hugging Face's, and their layouts.

`bases.py` detects which one a path is; `convert.py` copies one into another.
"""
