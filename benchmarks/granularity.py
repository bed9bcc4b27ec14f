"""Does granularity-aware distillation find the level that can be trusted? Known objects, damaged masks, real geometry.

    python benchmarks/granularity.py --scenes-dir ../shared/scenes --splats runs/bonsai/splats/splats.ply [--plot PNG]
    python benchmarks/granularity.py --scenes-dir ../shared/scenes --small

Every Gaussian of *bonsai* gets the object that most of its blend weight votes for in the labelled views; what is no
labelled object is cut into cells, so that everything is something. Objects rendered to all views are the clean masks.
Each object has a random unit feature and one clean level, drawn by the seed; its masks of the other two levels are
damaged in every view anew:

- *zero-mean*: the object falls into random pieces, each with a feature (1 - strength) e + strength u, u a random
  direction: views disagree, and average out.
- *biased*: the mask takes in each neighbour with probability strength x (in which share of the other views the object is
  nearer), its feature is the area-weighted mean: views disagree, and their average is off.
- *both*: one damaged level of each kind.

All features have noise on top. GaD, the granularity-aware lift (by agreement alone, and as it is by default: softly, with its
prior on region sizes), plain lifts of one level and of all three, and the distilled mean are compared on the labelled objects:
cosine of the decoded pixels with the object's feature, mIoU of the nearest object by feature, and how many pixels trust the clean
level. Writes JSON (and a plot); exits with 1 when the floors of ``--small``, or GaD's 90 %, are missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from gags.distill import GaliftConfig, LanguageField, LiftConfig, distill, galift, lift
from gags.evaluate import Labels, iou, load_labels
from gags.gaussians import Gaussians, read_splats
from gags.geometry import project
from gags.presets import FAST
from gags.rasterize import BlendWeights, blend_weights
from gags.reconstruct import initial_gaussians, scene_extent
from gags.scene import Scene, SceneConfig, load_scene
from gags.segment import ViewMasks

Damage = Literal["zero-mean", "biased", "both"]
Method = Literal[
    "gad",
    "galift",
    "galift soft",
    "galift unvoted",
    "galift default",
    "lift",
    "lift s",
    "lift m",
    "lift l",
    "distilled mean",
]

BACKGROUND_CELLS = 12
EMBEDDING_WIDTH = 512
FEATURE_WIDTH = 64
"""Of the lifted fields: the objects' features span fewer dimensions."""


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    every: int
    """Every n-th photograph is a training view."""
    max_side_px: int
    """Longer side of the masks."""
    iterations: int
    """Of the distillations; what is not said here is as in the preset fast."""
    pixels_per_iteration: int
    """Of the distillations."""
    sweep: dict[Damage, tuple[float, ...]]
    """Strengths of damage, by kind."""
    headline: tuple[Damage, float]
    """What is repeated over the seeds."""
    evaluate_every: int
    """Every n-th training view is measured."""


FULL = Size(
    every=3,
    max_side_px=134,
    iterations=800,
    pixels_per_iteration=2048,
    sweep={"zero-mean": (0.5, 0.75, 1.0), "biased": (0.5, 1.0, 2.0)},
    headline=("both", 0.8),
    evaluate_every=4,
)
SMALL = Size(
    every=6,
    max_side_px=68,
    iterations=600,
    pixels_per_iteration=512,
    sweep={},
    headline=("both", 0.8),
    evaluate_every=3,
)


@dataclass(frozen=True)
class ViewObjects:
    """What a view shows."""

    name: str
    object_map: Int[Tensor, "height width"]
    """Object of each pixel, -1 where nothing is."""
    areas_px: Float[Tensor, " object"]
    depths: Float[Tensor, " object"]
    """Mean depth of each object, scene units; not a number where it is not in the picture."""
    touches: Bool[Tensor, "object object"]
    """Which objects have pixels side by side."""


@dataclass(frozen=True)
class World:
    """A scene whose every Gaussian belongs to a known object."""

    scene: Scene
    gaussians: Gaussians
    objects: tuple[str, ...]
    """Labelled objects first, then cells of the background."""
    n_labelled: int
    views: tuple[ViewObjects, ...]
    """In the order of the scene's views."""

    @property
    def remoteness(self) -> Float[Tensor, "view object"]:
        """In which share of the other views that show an object it is nearer: 0 where it is nearest, 1 where farthest."""
        depths = torch.stack([view.depths for view in self.views])
        ranks = depths.nan_to_num(torch.inf).argsort(dim=0).argsort(dim=0)
        # At least 1: an object in a single view is nearest there.
        return ranks / ((~depths.isnan()).sum(dim=0) - 1).clamp(min=1)


@dataclass(frozen=True)
class Lesson:
    """What the methods learn from, and the truth about it."""

    features: Float[Tensor, "object embedding"]
    """Unit vectors."""
    clean_level: Int[Tensor, " object"]
    masks: dict[str, ViewMasks]
    embeddings: dict[str, Float[Tensor, "mask embedding"]]
    damaged_cosine: float
    """Mean cosine between a damaged mask's feature and its object's."""


def build_world(folder: Path, splats: Path | None, size: Size) -> World:
    """The scene at a small size and the object of each of its Gaussians."""
    with tempfile.TemporaryDirectory() as workspace:
        scene = load_scene(folder, SceneConfig(), Path(workspace))
    labels = load_labels(folder / "labels")
    if splats is None:
        gaussians = initial_gaussians(scene, scene_extent(scene.views, scene.points), 0.9, 0, None, 0)
        # Lone points become Gaussians that are large enough to hide everything.
        sizes = gaussians.log_scales[:, 0]
        gaussians = gaussians.subset(sizes < sizes.quantile(0.7))
    else:
        gaussians = read_splats(splats)
    owners, objects = gaussian_owners(gaussians, scene, labels, 2 * size.max_side_px)
    views = tuple(
        replace(view, camera=view.camera.limited(size.max_side_px), held_out=False)
        for view in scene.views[:: size.every]
    )
    one_hot = functional.one_hot(owners, len(objects)).float()
    shown = []
    for view in views:
        blend = blend_weights(gaussians, view.camera)
        shown.append(view_objects(view.name, blend, one_hot, project(view.camera, gaussians.means)[1]))
    return World(replace(scene, views=views), gaussians, objects, len(labels.phrases), tuple(shown))


def gaussian_owners(
    gaussians: Gaussians, scene: Scene, labels: Labels, max_side_px: int
) -> tuple[Int[Tensor, " gaussian"], tuple[str, ...]]:
    """The object of every Gaussian, by the blend weights of labelled pixels, and the objects' names.

    Gaussians that no labelled view shows follow the majority of their nearest neighbours.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.spatial import cKDTree

    background = len(labels.phrases)
    votes = torch.zeros(len(gaussians), background + 1)
    for frame in labels.frames:
        camera = scene.view(frame.image_name).camera.limited(max_side_px)
        truth = torch.full((camera.height, camera.width), background)
        for label in frame.labels:
            covered = functional.interpolate(label.mask[None, None].float(), truth.shape, mode="area")[0, 0]
            truth[covered > 0.5] = labels.phrases.index(label.category)
        votes += blend_weights(gaussians, camera).scatter(functional.one_hot(truth.flatten(), background + 1).float())
    owners, seen = votes.argmax(dim=1), votes.sum(dim=1) > 0.1
    _, neighbours = cKDTree(gaussians.means[seen].numpy()).query(gaussians.means[~seen].numpy(), k=5)
    owners[~seen] = owners[seen][torch.from_numpy(neighbours)].mode(dim=1).values
    # Clipped: a few far points would take most of the cells.
    places = gaussians.means[owners == background]
    low, high = places.quantile(0.05, dim=0), places.quantile(0.95, dim=0)
    _, cells = kmeans2(places.clamp(low, high).double().numpy(), BACKGROUND_CELLS, minit="++", seed=0)
    owners[owners == background] += torch.from_numpy(cells).long()
    return owners, (*labels.phrases, *(f"background {cell}" for cell in range(BACKGROUND_CELLS)))


def view_objects(
    name: str, blend: BlendWeights, one_hot: Float[Tensor, "gaussian object"], depths: Float[Tensor, " gaussian"]
) -> ViewObjects:
    """Each pixel's object by majority of its blend weights, where these cover it, and what follows from that map."""
    shares = blend.render(one_hot)
    depth = blend.render(depths[:, None])[..., 0] / shares.sum(dim=-1).clamp(min=1e-6)
    object_map = torch.where(shares.sum(dim=-1) > 0.5, shares.argmax(dim=-1), -1)
    present = functional.one_hot(object_map + 1, one_hot.shape[1] + 1)[..., 1:].float()
    areas = present.sum(dim=(0, 1))
    touches = torch.zeros(one_hot.shape[1], one_hot.shape[1], dtype=torch.bool)
    for one, other in ((object_map[:, 1:], object_map[:, :-1]), (object_map[1:], object_map[:-1])):
        beside = (one != other) & (one >= 0) & (other >= 0)
        touches[one[beside], other[beside]] = True
    return ViewObjects(
        name, object_map, areas, (present * depth[..., None]).sum(dim=(0, 1)) / areas, touches | touches.T
    )


def make_lesson(world: World, damage: Damage, strength: float, noise: float, seed: int) -> Lesson:
    """Clean and damaged masks of all views with their features."""
    rng = np.random.default_rng(seed)
    count = len(world.objects)
    features = unit(rng, count)
    clean_level = rng.integers(0, 3, count)
    # In "both", which of the two damaged levels falls into pieces.
    first_splits = rng.integers(0, 2, count)
    remoteness = world.remoteness.numpy()
    masks, embeddings, cosines = {}, {}, []
    for index, view in enumerate(world.views):
        label_maps = np.full((4, *view.object_map.shape), -1, np.int32)
        table: list[np.ndarray] = []
        for owner in np.flatnonzero(view.areas_px.numpy()):
            pixels = np.nonzero(view.object_map.numpy() == owner)
            for step in range(3):
                level = (clean_level[owner] + step) % 3
                splits = damage == "zero-mean" or (damage == "both" and step - 1 == first_splits[owner])
                pieces = np.zeros(len(pixels[0]), np.int32)
                if step == 0:
                    vectors = features[owner][None]
                elif splits:
                    pieces = random_pieces(rng, pixels)
                    vectors = normalised((1 - strength) * features[owner] + strength * unit(rng, pieces.max() + 1))
                else:
                    chance = strength * remoteness[index, owner]
                    members = view.touches[owner].numpy() & (rng.random(count) < chance)
                    members[owner] = True
                    vectors = normalised((view.areas_px.numpy() * members)[None] @ features)
                label_maps[1 + level][pixels] = pieces + len(table)
                noisy = normalised(vectors + noise * unit(rng, len(vectors)))
                table.extend(noisy)
                if step > 0:
                    cosines.extend(noisy @ features[owner])
        masks[view.name] = as_view_masks(label_maps, len(table))
        embeddings[view.name] = torch.from_numpy(np.stack(table)).float()
    truth = torch.from_numpy(features).float(), torch.from_numpy(clean_level)
    return Lesson(*truth, masks, embeddings, float(np.mean(cosines)))


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random directions [count, EMBEDDING_WIDTH]."""
    return normalised(rng.normal(size=(count, EMBEDDING_WIDTH)))


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_pieces(rng: np.random.Generator, pixels: tuple[np.ndarray, ...]) -> np.ndarray:
    """Two to four pieces around random pixels of a region: the piece of each pixel."""
    places = np.stack(pixels, axis=1).astype(float)
    centers = places[rng.integers(0, len(places), rng.integers(2, 5))]
    nearest = ((places[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)


def as_view_masks(label_maps: np.ndarray, count: int) -> ViewMasks:
    """The product of the segmentation stage, from label maps alone."""
    maps = torch.from_numpy(label_maps)
    masks = torch.zeros(count, *label_maps.shape[1:], dtype=torch.bool)
    granularity = torch.zeros(count, dtype=torch.int64)
    for level in range(1, 4):
        rows, columns = (maps[level] >= 0).nonzero(as_tuple=True)
        labels = maps[level][rows, columns].long()
        masks[labels, rows, columns] = True
        granularity[labels] = level
    return ViewMasks(masks, granularity, torch.ones(count), torch.ones(count), maps, torch.zeros(0, 2))


def methods(
    world: World, lesson: Lesson, size: Size, seed: int
) -> Iterator[tuple[Method, Callable[[], LanguageField]]]:
    """The ways to make a field."""
    products = (world.scene, world.gaussians, lesson.masks, lesson.embeddings)
    gad = replace(
        FAST.distill,
        iterations=size.iterations,
        pixels_per_iteration=size.pixels_per_iteration,
        downscale=1,
        seed=seed,
    )
    plain, default = (
        LiftConfig(downscale=1, feature_width=FEATURE_WIDTH),
        GaliftConfig(downscale=1, feature_width=FEATURE_WIDTH),
    )
    yield "gad", lambda: distill(*products, gad)
    yield "distilled mean", lambda: distill(*products, replace(gad, levels="mean"))
    bare = replace(default, size_prior=0.0, temperature=0.0)
    yield "galift", lambda: galift(*products, bare)
    yield "galift soft", lambda: galift(*products, replace(bare, temperature=0.05))
    yield "galift unvoted", lambda: galift(*products, replace(bare, confirmation_power=0.0))
    yield "galift default", lambda: galift(*products, default)
    yield "lift", lambda: lift(*products, plain)
    yield "lift s", lambda: lift(*products, replace(plain, levels="s"))
    yield "lift m", lambda: lift(*products, replace(plain, levels="m"))
    yield "lift l", lambda: lift(*products, replace(plain, levels="l"))


def measure(field: LanguageField, world: World, lesson: Lesson, evaluate_every: int) -> dict[str, float]:
    """How true a field is on the labelled objects."""
    cosines, scores, trusted = [], [], []
    shown = zip(world.scene.views, world.views, strict=True)
    for view, objects in list(shown)[::evaluate_every]:
        decoded = field.decode(field.render(view.camera))
        owner = objects.object_map
        labelled = (owner >= 0) & (owner < world.n_labelled)
        cosines.append((decoded[labelled] * lesson.features[owner[labelled]]).sum(dim=-1))
        nearest = torch.where(owner >= 0, (decoded @ lesson.features.T).argmax(dim=-1), -1)
        scores += [iou(nearest == category, owner == category) for category in owner[labelled].unique().tolist()]
        granularity = field.granularity(view.camera)
        if granularity is not None:
            trusted.append(granularity[labelled].argmax(dim=-1) == lesson.clean_level[owner[labelled]])
    result = {"cosine": float(torch.cat(cosines).mean()), "miou": statistics.mean(scores)}
    return result | ({"clean_level_share": float(torch.cat(trusted).float().mean())} if trusted else {})


def run_setting(
    world: World, size: Size, damage: Damage, strength: float, noise: float, seed: int, only: Sequence[Method]
) -> dict:
    """The methods on one kind and strength of damage."""
    lesson = make_lesson(world, damage, strength, noise, seed)
    found: dict = {"damage": damage, "strength": strength, "seed": seed, "damaged_cosine": lesson.damaged_cosine}
    print(
        f"\n{damage} {strength}, seed {seed}: damaged masks have cosine {lesson.damaged_cosine:.2f} with their object"
    )
    print(f"{'':16}{'cosine':>8}{'mIoU':>8}{'clean level':>13}{'seconds':>9}")
    for method, make in methods(world, lesson, size, seed):
        if method not in only:
            continue
        start = time.perf_counter()
        field = make()
        seconds = time.perf_counter() - start
        figures = measure(field, world, lesson, size.evaluate_every)
        share = figures.get("clean_level_share")
        level = "-" if share is None else f"{100 * share:.1f} %"
        print(f"{method:16}{figures['cosine']:8.3f}{figures['miou']:8.3f}{level:>13}{seconds:9.1f}", flush=True)
        found[method] = figures | {"seconds": seconds}
    return found


def summary(headline: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Mean and spread (standard deviation) over the seeds, by method and figure."""
    rows: dict[str, dict[str, list[float]]] = {}
    print(f"\n{headline[0]['damage']} {headline[0]['strength']}, mean and deviation over {len(headline)} seeds")
    for method in (method for method in get_args(Method) if method in headline[0]):
        rows[method] = {}
        for figure in headline[0][method]:
            values = [found[method][figure] for found in headline]
            rows[method][figure] = [statistics.mean(values), statistics.pstdev(values)]
        print(f"{method:16}" + "  ".join(f"{name} {mean:.3f} +- {sd:.3f}" for name, (mean, sd) in rows[method].items()))
    return rows


def borders(sweep: list[dict]) -> None:
    """Print by how much the cosine of the granularity-aware methods beats their plain counterparts."""
    print("\ncosine above the plain average of the levels")
    for found in sweep:
        gain = {
            "gad above distilled mean": found["gad"]["cosine"] - found["distilled mean"]["cosine"],
            "galift above lift": found["galift"]["cosine"] - found["lift"]["cosine"],
        }
        columns = "   ".join(f"{name} {value:+.3f}" for name, value in gain.items())
        print(f"{found['damage']:10}{found['strength']:5}   {columns}")


def plot(path: Path, sweep: list[dict]) -> None:
    """Draw cosine, mIoU and the share of the clean level over the strength of each kind of damage."""
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(found["damage"] for found in sweep))
    figures = {"cosine": "cosine with the object's feature", "miou": "mIoU", "clean_level_share": "clean level trusted"}
    figure, axes = pyplot.subplots(
        len(figures), len(kinds), figsize=(11, 11), sharex="col", sharey="row", squeeze=False
    )
    for column, kind in enumerate(kinds):
        series = [found for found in sweep if found["damage"] == kind]
        for row, (key, title) in enumerate(figures.items()):
            axis = axes[row, column]
            for method in (method for method in get_args(Method) if key in series[0][method]):
                style = "--" if method.startswith("lift") else ":" if method == "distilled mean" else "-"
                values = [found[method][key] for found in series]
                axis.plot([found["strength"] for found in series], values, style, marker=".", label=method)
            axis.grid(alpha=0.3)
            axis.set_ylabel(title if column == 0 else "")
            axis.set_title(f"{kind} damage" if row == 0 else "")
        axes[-1, column].set_xlabel("strength")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def missed_floors(headline: dict[str, dict[str, list[float]]], small: bool) -> list[str]:
    """What the headline should reach and does not."""
    gad, aware, plain = headline["gad"], headline["galift"], headline["lift"]
    floors = {
        "gad trusts the clean level": (gad["clean_level_share"][0], 0.8 if small else 0.9),
        "galift trusts the clean level": (aware["clean_level_share"][0], 0.8 if small else 0.9),
        "galift's cosine, compared with lift's": (aware["cosine"][0], plain["cosine"][0]),
    }
    return [f"{name}: {found:.3f} < {floor:.3f}" for name, (found, floor) in floors.items() if found < floor]


def main() -> None:
    """Build the world, damage it, learn, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes-dir", type=Path, required=True)
    parser.add_argument("--splats", type=Path, help="trained Gaussians of bonsai; without them its sparse points")
    parser.add_argument("--small", action="store_true", help="one seed, no sweep, under a minute")
    parser.add_argument("--seeds", type=int, default=3, help="of the headline setting; the sweep has seed 0")
    parser.add_argument(
        "--only", nargs="+", choices=get_args(Method), help="these methods, at the headline setting alone"
    )
    parser.add_argument("--noise", type=float, default=0.3, help="length of the noise on unit features")
    parser.add_argument("--out", type=Path, default=Path("runs/granularity.json"))
    parser.add_argument("--plot", type=Path, help="PNG of the sweep; needs matplotlib")
    options = parser.parse_args()
    size = SMALL if options.small else FULL
    world = build_world(options.scenes_dir / "bonsai", options.splats, size)
    seeds = 1 if options.small else options.seeds
    chosen = options.only or get_args(Method)
    headline = [run_setting(world, size, *size.headline, options.noise, seed, chosen) for seed in range(seeds)]
    sweep = [
        run_setting(world, size, damage, strength, options.noise, 0, chosen)
        for damage, strengths in ({} if options.only else size.sweep).items()
        for strength in strengths
    ]
    rows = summary(headline)
    borders(sweep)
    if options.plot is not None and sweep:
        plot(options.plot, sweep)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("numba", "numpy", "torch")} | {"python": platform.python_version()}
    about = {"machine": machine, "versions": versions, "size": asdict(size), "noise": options.noise}
    found = {"gaussians": len(world.gaussians), "objects": world.objects, "headline": rows, "runs": headline + sweep}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(about | found, indent=1) + "\n")
    missed = [] if options.only else missed_floors(rows, options.small)
    print(f"\nwritten to {options.out}", *(f"MISSED {line}" for line in missed), sep="\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
