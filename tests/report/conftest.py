"""Inspections that the report's tests share; each is made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from report_subjects import digits_inspection, text_inspection

from netloupe.report.inspection import Inspection


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return digits_inspection(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return text_inspection(tmp_path_factory.mktemp("text"))
