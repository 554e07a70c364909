"""The feast study: its controls are what they say, and its smallest run shows the balance."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.data.digits import digits
from netloupe.data.event_simulation import moving_bars, saccade_events
from netloupe.data.events import make_events
from netloupe.studies import _feast_digits
from netloupe.studies._feast_bars import _apart
from netloupe.studies._feast_digits import Recordings, recordings, shuffled
from netloupe.studies.feast import run


def test_shuffling_times_keeps_pixels_and_times() -> None:
    events, _ = moving_bars(500)
    mixed = shuffled(events, 1)
    np.testing.assert_array_equal(mixed["t"], events["t"])
    for name in ("x", "y", "p"):
        np.testing.assert_array_equal(np.sort(mixed[name]), np.sort(events[name]))
    place = events["y"].astype(int) * 34 + events["x"]
    np.testing.assert_array_equal(np.bincount(place), np.bincount(mixed["y"].astype(int) * 34 + mixed["x"]))
    assert not np.array_equal(mixed["x"], events["x"])


def test_train_and_test_recordings_are_of_other_digits() -> None:
    (train, y), (test, y_test), what = recordings(Recordings(train=2, test=1), full=False)
    assert np.bincount(y).tolist() == [2] * 10
    assert np.bincount(y_test).tolist() == [1] * 10
    assert len(train) == 20
    assert len(test) == 10
    assert not any(len(a) == len(b) and np.array_equal(a, b) for a in train for b in test)
    assert "digits" in what


def test_full_takes_recordings_from_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = (part.numpy() for part in digits())
    asked = []

    def stored(folder: str, train: bool) -> list[tuple[np.ndarray, int]]:
        asked.append((folder, train))
        chosen = [i for k in range(10) for i in np.flatnonzero(labels == k)[slice(0, 3) if train else slice(3, 4)]]
        return [(saccade_events(images[i, 0]), int(labels[i])) for i in chosen]

    monkeypatch.setenv("NETLOUPE_NMNIST", "somewhere")
    monkeypatch.setattr(_feast_digits, "nmnist", stored)
    accuracy, gain = _feast_digits.classification(Recordings(3, 1, 10, 4), range(1), full=True)
    assert asked == [("somewhere", True), ("somewhere", False)]
    assert "N-MNIST; 30 recordings to train, 10 to test" in accuracy.note
    assert accuracy.measured is not None
    assert 0.1 < accuracy.measured <= 1
    assert gain.values
    monkeypatch.delenv("NETLOUPE_NMNIST")
    monkeypatch.setattr(_feast_digits, "saccade_events", lambda image, **options: make_events([0], [0], [0]))
    (train, _), (test, _), _ = recordings(Recordings(train=6000, test=1000), full=True)
    assert len(train) + len(test) == len(images)
    assert len(test) > 500


def test_flat_at_the_same_window() -> None:
    fast, slow = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), np.array([1.0, 0.9, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert _apart(fast, fast) == 0
    assert _apart(fast, slow) == pytest.approx(0.5)  # the second window against the fourth


def test_smallest_run() -> None:
    claims = {claim.name: claim for claim in run_study("feast", "smoke").claims}
    assert claims["miss-rate"].verdict == "reproduced"
    assert claims["homeostasis-long-run"].verdict == "reproduced"
    assert claims["classification"].verdict == "not tested"
    with pytest.raises(InputError, match="preset"):
        next(iter(run("huge")))  # type: ignore[arg-type]
