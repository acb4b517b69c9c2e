"""Two-stage fine-tuning of T5-family models: train a soft prompt, then the model behind it."""

__version__ = "0.1.0"
