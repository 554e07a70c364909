"""The claims of the brain-readouts study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.synthetic_voxels import object_scenes, voxel_responses
from netloupe.domains.brain.readouts import FactorizedReadout, SemanticSpatialTransformer
from netloupe.lenses.similarity.scores import noise_ceiling, normalised_score, voxel_correlation
from netloupe.studies._brain_readouts_fits import Setting, World, mask_follows
from netloupe.studies._brain_readouts_zones import ZONES, available, zones

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENOUGH = 1000  # images from which ridge regression on 1,176 numbers is no straw man


def identity(seed: int) -> Claim:
    """Claim 1: the moving readout starts as the still one."""
    gaps, moved = [], []
    for k in range(5):
        torch.manual_seed(seed + k)
        sst = SemanticSpatialTransformer((6, 14, 14), 8, nn.Identity(), (1, 7, 7), init=1.0)
        still = FactorizedReadout((6, 14, 14), 8, init=1.0)
        still.load_state_dict({name: sst.state_dict()[name] for name in still.state_dict()})
        x, img = torch.randn(16, 6, 14, 14), torch.randn(16, 1, 7, 7)
        with torch.no_grad():
            gaps.append(float((sst(x, img) - still(x)).abs().max()))
            sst.move_masks[-1].bias.add_(0.5)  # type: ignore[operator]
            moved.append(float((sst(x, img) - still(x)).abs().max()))

    def plot(axes: Axes) -> None:
        axes.semilogy(range(1, 6), gaps, "o", label="at the start")
        axes.semilogy(range(1, 6), moved, "s", label="transforms off by 0.5")
        axes.axhline(1e-5, color="0.5", linestyle="--", linewidth=1)
        axes.set(xlabel="initialisation", ylabel="largest difference")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "identity-start",
        "Before training the readout that moves equals the factorised readout with the same masks; measured is the largest difference.",
        **over_seeds(gaps),
        bar=Bar("<", 1e-5),
        control=min(moved),
        control_statement="the same with 0.5 added to every number of the masks' transforms",
        plot=plot,
    )


def moving_fields(setting: Setting, seeds: Sequence[int]) -> Iterator[Claim]:
    """Claims 2 and 3: what moves needs a readout that moves, and it learns where to."""
    names = ("ridge", "still", "still with code", "moving", "masks alone", "code shuffled")
    table: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in names} for kind in ("object", "fixed")}
    follows: list[float] = []
    shuffled: list[float] = []
    for seed in seeds:
        world = World(setting, seed)
        for kind in ("object", "fixed"):
            voxels, row = world.voxels(kind), table[kind]
            row["ridge"].append(world.ridge(voxels))
            row["still"].append(world.still(voxels))
            row["moving"].append(world.moving(voxels, world.code)[0])
        voxels, row = world.voxels("object"), table["object"]
        row["still with code"].append(world.still(voxels, world.with_code))
        score, masks = world.moving(voxels, world.code, warp_features=False)
        row["masks alone"].append(score)
        follows.append(mask_follows(world, masks, world.code))
        row["code shuffled"].append(world.moving(voxels, world.shuffled_code)[0])
        _, lost = world.moving(voxels, world.shuffled_code, warp_features=False)
        shuffled.append(mask_follows(world, lost, world.shuffled_code))
    note = _said(table, setting)

    def ratios(kind: str, over: str, under: str) -> np.ndarray:
        return np.array(table[kind][over]) / np.array(table[kind][under])

    def bars(axes: Axes) -> None:
        for offset, (kind, rows) in enumerate(table.items()):
            shown = [name for name in names if rows[name]]
            places = [names.index(name) + 0.4 * offset - 0.2 for name in shown]
            axes.barh(places, [np.mean(rows[name]) for name in shown], 0.38, label=f"{kind} voxels")
            for place, name in zip(places, shown, strict=True):
                axes.plot(rows[name], [place] * len(rows[name]), "k.", markersize=3)
        axes.axvline(1 / np.sqrt(1.25), color="0.5", linestyle="--", linewidth=1, label="ceiling")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="test correlation", xlim=(0, 1), ylim=(-0.6, len(names) + 0.3))
        axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=3)

    for name, what, base, bar in (
        ("moving-over-still", "a factorised readout", "still", 1.10),
        ("moving-over-ridge", "ridge regression on the whole map", "ridge", 1.07),
    ):
        if base == "ridge" and setting.n_train < ENOUGH:
            against = "the same ratio for voxels that read a fixed place"
            few = f"With fewer than {ENOUGH} images ridge falls behind for voxels that stay, too, so that nothing could be told apart."
            yield Claim(name, f"The readout that moves beats {what}.", None, Bar(">=", bar), None, against, note=few)
            continue
        yield Claim(
            name,
            f"Voxels that read a part of an object wherever it is are predicted better by the readout that moves than by {what}; "
            "measured is the ratio of mean test correlations.",
            **over_seeds(ratios("object", "moving", base).tolist()),
            bar=Bar(">=", bar),
            control=max(
                float(ratios("fixed", "moving", base).mean()), float(ratios("object", "code shuffled", base).mean())
            ),
            control_statement="the larger of the same ratio for voxels that read a fixed place, and with the codes of other images",
            note=note,
            plot=bars,
        )
    yield Claim(
        "motion-not-features",
        "The gain is motion and not the further features that the semantic network has: the ratio to a factorised readout that gets the "
        "semantic network's map as a further channel.",
        **over_seeds(ratios("object", "moving", "still with code").tolist()),
        bar=Bar(">=", 1.10),
        control=float(ratios("object", "code shuffled", "still with code").mean()),
        control_statement="the readout that moves with the codes of other images, over the same",
        note=note,
        plot=bars,
    )

    def centres(axes: Axes) -> None:
        for place, values in enumerate((follows, shuffled)):
            axes.bar(place, np.mean(values), color=f"C{place}", alpha=0.6)
            axes.plot([place] * len(values), values, "k.")
        axes.set_xticks([0, 1], ["its own code", "code shuffled"])
        axes.axhline(0.6, color="0.5", linestyle="--", linewidth=1)
        axes.set(ylabel="correlation of mask centre and object")

    yield Claim(
        "masks-follow",
        "The masks move to where the object is: correlation over test images of the centre of a moved mask with the object's place, "
        "mean over voxels and both axes (masks alone move).",
        **over_seeds(follows),
        bar=Bar(">=", 0.6),
        control=float(np.mean(shuffled)),
        control_statement="the same with the codes of other images",
        note="A voxel reads a part beside the object's centre; correlation leaves a constant offset aside.",
        plot=centres,
    )


def _said(table: dict[str, dict[str, list[float]]], setting: Setting) -> str:
    rows = [
        f"{kind} voxels: " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in found.items() if values)
        for kind, found in table.items()
    ]
    return (
        f"{setting.n_voxels} voxels, {setting.n_train} images to fit and {setting.n_test} to judge, maps of 6 channels, {setting.size} x "
        f"{setting.size}; noise 0.5 of the signal, ceiling 0.894. Mean test correlations, {'; '.join(rows)}."
    )


def efficiency(setting: Setting, seeds: Sequence[int]) -> Claim:
    """Claim 4: few parameters win with few samples."""
    found: dict[str, np.ndarray] = {}
    for kind in ("fixed", "dense"):
        rows = []
        for seed in seeds:
            world = World(setting, seed)
            voxels = world.voxels(kind)
            rows.append([world.still(voxels, n_train=n) / max(world.ridge(voxels, n), 1e-3) for n in setting.sizes])
        found[kind] = np.array(rows)

    def curves(axes: Axes) -> None:
        for kind, label in (("fixed", "a mask times a vector"), ("dense", "full rank (control)")):
            values = found[kind]
            axes.plot(setting.sizes, values.mean(0), "o-", label=label)
            axes.fill_between(setting.sizes, values.min(0), values.max(0), alpha=0.2)
        axes.axhline(1, color="0.6", linewidth=1)
        axes.set(xscale="log", xlabel="training images", ylabel="factorised over ridge")
        axes.set_xticks(setting.sizes, [str(size) for size in setting.sizes])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")

    table = "; ".join(
        f"{kind}: " + ", ".join(f"{value:.2f}" for value in values.mean(0)) for kind, values in found.items()
    )
    return Claim(
        "few-samples",
        f"With {setting.sizes[0]} images a factorised readout predicts voxels of that form better than ridge regression does; measured is "
        "the ratio of mean test correlations.",
        **over_seeds(found["fixed"][:, 0].tolist()),
        bar=Bar(">=", 1.05),
        control=float(found["dense"][:, -1].mean()),
        control_statement=f"the same with {setting.sizes[-1]} images for voxels whose weights are of full rank, where ridge must win",
        control_bar=Bar(">=", 1.0),
        note=f"Ratios at {', '.join(map(str, setting.sizes))} images. {table}.",
        plot=curves,
    )


def three_zones(setting: Setting, seeds: Sequence[int]) -> Claim:
    """Claim 5: voxels are told apart by what predicts them."""
    statement = (
        "Voxels driven by pixels, by the words of objects in their places, and by the meaning of a caption are told apart by which "
        "features predict them best; measured is the share put into its own zone."
    )
    against = "the same with words and captions of other images, where language never should win"
    bar = Bar(">=", 0.7)
    why = "Captions are left out of the smallest preset." if not setting.captions else available()
    if why:
        return Claim("zones", statement, None, bar, None, against, note=why)
    found = [zones(setting.captions, setting.n_voxels, seed) for seed in seeds]
    null = [zones(setting.captions, setting.n_voxels, seed, shuffle=True) for seed in seeds]

    def scatter(axes: Axes) -> None:
        one = found[0]
        for place, name in enumerate(ZONES):
            mine = one.truth == place
            axes.plot(one.scores[0, mine], one.scores[2, mine], "o", markersize=4, label=f"driven by {name}")
        axes.set(xlabel="test correlation from pixels", ylabel="test correlation from the caption")
        axes.legend(frameon=False, fontsize="small")

    won = [float((np.nan_to_num(one.scores).argmax(0) > 0).mean()) for one in null]
    return Claim(
        "zones", statement, **over_seeds([one.accuracy for one in found]), bar=bar,
        control=float(np.mean([one.accuracy for one in null])), control_statement=against,
        note=f"Three times {setting.n_voxels} voxels, {setting.captions} scenes of one or two objects; captions by template, read by "
        f"MiniLM. Language wins for {100 * np.mean(won):.0f} % of voxels with captions of other images.",
        plot=scatter,
    )  # fmt: skip


def ceilings(seeds: Sequence[int]) -> Claim:
    """Claim 6: ceilings from repeats are right."""
    errors, wrong = [], []
    shown: list[tuple[float, float]] = []
    for seed in seeds:
        scenes = object_scenes(1000, 14, seed=seed)
        worst, lost = 0.0, np.inf
        for noise in (0.5, 1.0, 2.0):
            voxels = voxel_responses(scenes, "fixed", 30, noise=noise, n_repeats=3, seed=seed)
            estimated = noise_ceiling(voxels.repeats)
            reached = normalised_score(voxel_correlation(voxels.signal, voxels.responses), estimated)
            true = float(voxels.ceiling[0])
            worst = max(worst, abs(float(estimated.mean()) - true), abs(float(np.nanmean(reached)) - 1))
            shown.append((true, float(estimated.mean())))
            order = np.random.default_rng(seed).permuted(voxels.repeats, axis=1)
            lost = min(lost, abs(float(noise_ceiling(order).mean()) - true))
        errors.append(worst)
        wrong.append(lost)

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(*zip(*shown, strict=True), "o")
        axes.set(xlabel="true ceiling", ylabel="estimated from three repeats")

    draw: Callable[[Axes], None] = plot
    return Claim(
        "ceiling",
        "Ceilings estimated from repeats are right, and the true signal divided by them scores 1; measured is the larger error of the two, "
        "worst of three noise levels, each a mean over voxels.",
        **over_seeds(errors),
        bar=Bar("<=", 0.05),
        control=float(np.mean(wrong)),
        control_statement="the smallest error with the repeats of each voxel assigned to samples at random",
        note="30 voxels, 1,000 images, 3 repeats, noise of 0.5, 1 and 2 times the signal.",
        plot=draw,
    )
