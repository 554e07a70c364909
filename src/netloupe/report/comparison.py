"""Two recordings of the same samples, compared site by site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from netloupe.core.errors import InputError
from netloupe.core.finding import plain
from netloupe.core.lens import find_lenses, get_lens
from netloupe.core.store import Store, StoredSite

RESERVED = ("labels", "mask")


class Pooled:
    """A stored site with positions averaged (padding left out), read in slices like the site itself."""

    def __init__(self, site: StoredSite, mask: Any = None) -> None:
        self.site, self.mask = site, mask
        self.shape = (site.shape[0], site.shape[-1])

    def __getitem__(self, rows: slice) -> torch.Tensor:
        values = self.site[rows]
        if self.mask is None or self.mask.shape[1] != values.shape[1]:
            return values.to(torch.promote_types(values.dtype, torch.float32)).mean(1)
        real = torch.as_tensor(self.mask[rows]).to(values.device)[..., None]
        return values.float().masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)


def pooled(store: Store, site: str) -> Any:
    """A stored site as ``(sample, unit)``."""
    found = store[site]
    return found if len(found.shape) == 2 else Pooled(found, store.mask)


def compare_stores(first: Path, second: Path, lenses: Sequence[str] = ()) -> dict[str, Any]:
    """Every comparing lens on every pair of sites: ``{"a", "b", "n_samples", "findings": [...]}``.

    Both recordings must hold the same samples in the same order; differing labels are refused. Sites with positions
    are averaged over them.
    """
    one, two = Store(first), Store(second)
    if len(one) != len(two):
        raise InputError(
            f"'{first}' holds {len(one)} samples and '{second}' {len(two)}; record both networks on the same data"
        )
    if (
        one.labels is not None
        and two.labels is not None
        and not torch.equal(torch.as_tensor(one.labels), torch.as_tensor(two.labels))
    ):
        raise InputError(
            f"'{first}' and '{second}' have different labels, so they are not of the same samples in the same order"
        )
    asked = (
        [get_lens(name) for name in lenses] if lenses else [lens for lens in find_lenses().values() if lens.compares]
    )
    wrong = [lens.name for lens in asked if not lens.compares]
    if wrong:
        known = ", ".join(lens.name for lens in find_lenses().values() if lens.compares)
        raise InputError(f"{', '.join(wrong)} looks at one site; comparing lenses are {known}")
    rows = []
    for lens in asked:
        for site_a in (name for name in one.sites if name not in RESERVED):
            for site_b in (name for name in two.sites if name not in RESERVED):
                finding = lens.function(pooled(one, site_a), pooled(two, site_b))
                rows.append(
                    {"lens": lens.name, "site_a": site_a, "site_b": site_b, "summary": plain(finding.summary())}
                )
    return {"a": str(first), "b": str(second), "n_samples": len(one), "findings": rows}
