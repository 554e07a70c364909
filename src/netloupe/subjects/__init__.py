"""From what a user writes on a command line to a network and batches for it."""

from netloupe.subjects.data import Data, Shown, load_data
from netloupe.subjects.models import Subject, load_model

__all__ = ["Data", "Shown", "Subject", "load_data", "load_model"]
