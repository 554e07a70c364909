"""Real data sets and generators with known ground truth."""

from netloupe.data.digits import digits
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.data.stdlib_text import stdlib_docstrings

__all__ = ["digits", "fashion_mnist", "stdlib_docstrings"]
