"""Tasks whose geometry is what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.arrangement import centred_kernel, kernel_alignment
from netloupe.core.errors import InputError
from netloupe.data.structured_tasks import (
    aligned_kernel,
    aligned_spectrum,
    aligned_task,
    parities,
    random_kernel_task,
    separable_xor,
    unstructured_task,
)


def input_target_alignment(task) -> float:
    return kernel_alignment(task.means @ task.means.T, task.labels @ task.labels.T)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(1, 3), st.floats(0, 1), st.integers(0, 10**6))
def test_the_dial_of_orthogonal_components_is_exact(bits: int, n_targets: int, dial: float, seed: int):
    n_targets = min(n_targets, 2**bits - 2)
    task = aligned_task(bits, n_targets, 40, dial, seed=seed)
    assert input_target_alignment(task) == pytest.approx(dial, abs=1e-8)
    pi = aligned_spectrum(2**bits - 1, n_targets, dial, seed)
    assert pi.sum() == pytest.approx(1)
    assert pi.min() >= 0
    assert pi[:n_targets].sum() / (np.linalg.norm(pi) * np.sqrt(n_targets)) == pytest.approx(dial, abs=1e-12)
    # the kernel is that of H diag(pi) H', times dim
    table = parities(bits)
    np.testing.assert_allclose(task.means @ task.means.T, 40 * (table * pi) @ table.T, atol=1e-9)
    np.testing.assert_array_equal(task.labels, table[:, :n_targets])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(3, 9), st.integers(1, 3), st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 8))
def test_the_dial_of_random_kernels_is_exact(n: int, m: int, dial: float, seed: int, missing: int):
    rng = np.random.default_rng(seed)
    m = min(m, n - 2)
    labels = rng.standard_normal((n, m))
    rank = max(m + 1, n - 1 - missing)
    kernel = aligned_kernel(labels @ labels.T, dial, rank, seed)
    assert kernel_alignment(kernel, labels @ labels.T) == pytest.approx(dial, abs=1e-8)
    np.testing.assert_allclose(kernel, centred_kernel(kernel), atol=1e-9)
    values = np.linalg.eigvalsh(kernel)
    assert values[0] > -1e-9
    assert (values > 1e-8 * values[-1]).sum() <= rank
    assert values.sum() == pytest.approx(n)


def test_a_random_kernel_task_has_its_kernel_and_its_labels():
    labels = parities(3)[:, :2]
    task = random_kernel_task(labels @ labels.T, 0.4, seed=3, labels=labels, dim=50, noise=0.0)
    assert input_target_alignment(task) == pytest.approx(0.4, abs=1e-8)
    np.testing.assert_array_equal(task.labels, labels)
    np.testing.assert_allclose(
        task.means @ task.means.T, 50 * aligned_kernel(labels @ labels.T, 0.4, seed=3), atol=1e-8
    )
    free = random_kernel_task(labels @ labels.T, 0.4, seed=3)
    np.testing.assert_allclose(free.labels @ free.labels.T, labels @ labels.T, atol=1e-9)


def test_parities_are_orthogonal_and_in_order():
    table = parities(4)
    np.testing.assert_array_equal(table.T @ table, 16 * np.eye(15))
    assert not table.sum(0).any()
    bits = table[:, :4]
    np.testing.assert_array_equal(table[:, 4], bits[:, 0] * bits[:, 1])
    np.testing.assert_array_equal(table[:, -1], bits.prod(1))


@pytest.mark.parametrize("eps", [0.0, 0.25, 1.0])
def test_the_separable_xor_has_the_kernel_of_its_three_directions(eps: float):
    task = separable_xor(120, eps, seed=7)
    bits = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    np.testing.assert_array_equal(task.labels[:, 0], [-1, 1, 1, -1])
    wanted = 40 * (bits @ bits.T + eps**2 * task.labels @ task.labels.T)
    np.testing.assert_allclose(task.means @ task.means.T, wanted, atol=1e-9)
    # three orthogonal components of weights 1, 1 and eps^2
    assert input_target_alignment(task) == pytest.approx(eps**2 / np.sqrt(2 + eps**4), abs=1e-12)


def test_unstructured_tasks():
    task = unstructured_task(4, 30, seed=1)
    np.testing.assert_array_equal(task.labels[:, 0], [1, 1, -1, -1])
    many = unstructured_task(8, 30, dichotomies=5, seed=1, center=True)
    assert not many.labels.sum(0).any()
    assert len({tuple(column * column[0]) for column in many.labels.T}) == 5
    np.testing.assert_allclose(many.means.mean(0), 0, atol=1e-12)
    assert unstructured_task(4, 10, dichotomies=3).labels.shape == (4, 3)
    assert (
        len({tuple(c) for c in (lambda y: (y * y[0]).T)(unstructured_task(20, 5, dichotomies=4, seed=2).labels)}) == 4
    )


def test_samples_are_means_and_noise():
    task = separable_xor(30, 0.5, noise=0.2, seed=0)
    condition, x, y = task.sample(4000, seed=1)
    assert np.bincount(condition, minlength=4).min() > 850
    left = x - task.means[condition]
    assert left.std() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_array_equal(y, task.labels[condition])
    assert np.array_equal(x, task.sample(4000, seed=1)[1])
    assert not np.array_equal(x, task.sample(4000, seed=2)[1])
    quiet = separable_xor(30, 0.5, noise=0.0)
    np.testing.assert_array_equal(quiet.sample(9)[1], quiet.means[quiet.sample(9)[0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: aligned_task(alignment=1.2),
        lambda: aligned_task(alignment=float("nan")),
        lambda: aligned_task(bits=2, n_targets=3),
        lambda: aligned_task(bits=4, dim=10),
        lambda: aligned_task(bits=0),
        lambda: separable_xor(100),
        lambda: separable_xor(30, eps=-1),
        lambda: separable_xor(30, noise=-0.1),
        lambda: unstructured_task(5),
        lambda: unstructured_task(4, dichotomies=4),
        lambda: unstructured_task(4, dichotomies=0),
        lambda: unstructured_task(4).sample(0),
        lambda: random_kernel_task(np.eye(4), -0.1),
        lambda: random_kernel_task(np.ones((4, 4)), 0.5),
        lambda: random_kernel_task(-np.eye(4), 0.5),
        lambda: random_kernel_task(np.eye(4), 0.5, max_rank=2),
        lambda: random_kernel_task(np.eye(4), 0.0),
        lambda: random_kernel_task(np.eye(4), 0.5, labels=np.ones((4, 1))),
        lambda: random_kernel_task(np.full((4, 3), 1.0), 0.5),
    ],
)
def test_impossible_tasks_are_refused_in_one_sentence(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_target_that_fills_the_rank_only_goes_up():
    labels = parities(2)[:, :2]
    assert aligned_kernel(labels @ labels.T, 1.0, max_rank=2).shape == (4, 4)
    with pytest.raises(InputError, match="lower alignment"):
        aligned_kernel(labels @ labels.T, 0.01, max_rank=2)
