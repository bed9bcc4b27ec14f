"""Rows of ``run.py``: masks, features, fields and queries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gags.distill import DistillConfig, FeatureDecoder, FieldMeta, LanguageField, distill, galift, lift
from gags.encode import EncodeConfig, adapted, encode, scene_prior
from gags.geometry import Camera
from gags.presets import FAST
from gags.query import QueryConfig, nearest_gaussians, phrase_vectors, query, query_3d, relevancy, relevancy_maps
from gags.segment import HierarchySegmenter, SegmentConfig, segment
from measuring import PHRASE, Bench, Figure, new_phrase, resampled


def fields(bench: Bench, kind: str) -> list[Figure]:
    """A field from masks and features."""
    run, make = bench.run, {"lift": lift, "galift": galift}[kind]
    config: Any = getattr(FAST, kind)
    if bench.quick:
        config = dataclasses.replace(config, feature_width=8)
    masks, embeddings = dict(run.masks), dict(run.embeddings)
    started, cpu = time.perf_counter(), time.process_time()
    make(bench.scene, run.gaussians, masks, embeddings, config)
    return [
        Figure(kind, time.perf_counter() - started, "s", "<= 30"),
        Figure(f"{kind}, CPU", time.process_time() - cpu, "s"),
    ]


def distillation(bench: Bench, iterations: int | None) -> list[Figure]:
    """GaD from masks and features; with a number of iterations, those of a whole training are extrapolated."""
    config: DistillConfig = dataclasses.replace(FAST.distill, iterations=iterations or FAST.distill.iterations)
    masks, embeddings = dict(bench.run.masks), dict(bench.run.embeddings)
    marks: list[tuple[float, float]] = []

    def mark(_: Any) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    quarter = max(1, config.iterations // 4)
    started = time.perf_counter()
    config = dataclasses.replace(config, checkpoint_every=quarter)
    distill(bench.scene, bench.run.gaussians, masks, embeddings, config, on_checkpoint=mark)
    seconds = time.perf_counter() - started
    steps = quarter * (len(marks) - 1)
    each, each_cpu = ((last - first) / steps for first, last in zip(marks[0], marks[-1], strict=True))
    seconds += each * (FAST.distill.iterations - config.iterations)
    return [
        Figure("gad" if iterations is None else "gad, extrapolated", seconds / 60, "min", "<= 5"),
        Figure("gad, an iteration", 1e3 * each, "ms"),
        Figure("gad, an iteration, CPU", 1e3 * each_cpu, "ms"),
    ]


def segmentation(bench: Bench) -> list[Figure]:
    """Masks and features of a few views by the built-in models, for all."""
    count = 1 if bench.quick else 4
    scene, run = bench.first_views(count), bench.run
    config = SegmentConfig(**run.description["config"]["segment"])
    encoder = run.encoder
    # what is loaded at first use is not a view's
    encoder.encode_tiles(torch.zeros(1, 3, encoder.tile_px, encoder.tile_px))
    seconds = []

    made = segment(scene, run.gaussians, run.depths, HierarchySegmenter(), config)
    started = time.perf_counter()
    masks = dict(made)
    seconds.append((time.perf_counter() - started) / count)
    started = time.perf_counter()
    encode_config = EncodeConfig(**run.description["config"]["encode"])
    prior = scene_prior(scene, masks, encoder, encode_config)
    # made of twelve views, however many there are
    seconds.append((time.perf_counter() - started) / count * 12 / 126)
    started = time.perf_counter()
    dict(encode(scene, masks, adapted(encoder, prior), encode_config))
    seconds.append((time.perf_counter() - started) / count)
    return [
        Figure("segment, a view", seconds[0], "s"),
        Figure("encode, a view, and its share of the scene prior", seconds[1] + seconds[2], "s"),
        Figure("126 views", 126 * sum(seconds) / 60, "min", "<= 8"),
    ]


def decode_every_pixel(
    field: LanguageField, camera: Camera, bench: Bench, config: QueryConfig, phrase: str
) -> Float[Tensor, "phrase point"]:
    """Relevancy as it is defined: render, decode, compare."""
    positives, negatives = phrase_vectors([phrase], bench.run.encoder, config)
    features = field.render(camera).flatten(0, 1)
    parts = [relevancy(field.decode(rows), positives, negatives) for rows in features.split(65536)]
    return torch.cat(parts, dim=1)


def view_query(bench: Bench) -> list[Figure]:
    """One phrase in a new view, of every field of the run."""
    config, camera, encoder = QueryConfig(), bench.query_camera, bench.run.encoder
    figures = []
    for kind in bench.run.field_kinds:
        field = bench.run.field(kind)
        quick = relevancy_maps(field, camera, [PHRASE], encoder, config).flatten(1)
        off = float((quick - decode_every_pixel(field, camera, bench, config, PHRASE)).abs().max())
        found, decoded = bench.time(
            lambda field=field: query(field, camera, [new_phrase()], encoder, config),
            lambda field=field: decode_every_pixel(field, camera, bench, config, new_phrase()),
            repeats=3,
        )
        figures += [
            *found.figures(f"{kind}, query", "<= 150"),
            Figure(f"{kind}, every pixel decoded : query, wall", decoded.wall_ms / found.wall_ms, "x", ">= 20"),
            Figure(f"{kind}, every pixel decoded : query, CPU", decoded.cpu_ms / found.cpu_ms, "x"),
            Figure(f"{kind}, largest relevancy error", off, "", "<= 0.02"),
        ]
    return figures


def query_in_3d(bench: Bench) -> list[Figure]:
    """One phrase among 300 000 Gaussians, after another one was asked."""
    config, encoder, number = QueryConfig(), bench.run.encoder, 3000 if bench.quick else 300_000
    figures = []
    for kind in bench.run.field_kinds:
        made = bench.run.field(kind)
        gaussians = resampled(made.gaussians, number)
        features = made.features[torch.arange(number) % len(made.features)]
        field = dataclasses.replace(made, gaussians=gaussians, features=features, level_weights=None)
        nearest = nearest_gaussians(gaussians.means, config.smooth_neighbours)
        (times,) = bench.time(
            lambda field=field, nearest=nearest: query_3d(field, [new_phrase()], encoder, config, nearest)
        )
        figures += times.figures(f"{kind}, {number} Gaussians, warm", "<= 40")
    (embedding,) = bench.time(lambda: phrase_vectors([new_phrase()], encoder, config))
    return [*figures, *embedding.figures("of it, embedding the phrase")]


def three_fields(bench: Bench) -> list[Figure]:
    """LangSplat's arrangement: a field a level, each rendered and decoded, the best taken; on this engine."""
    torch.manual_seed(0)
    gaussians, camera, encoder = bench.run.gaussians, bench.query_camera, bench.run.encoder
    levels = [
        LanguageField(
            gaussians,
            torch.randn(len(gaussians), 16),
            FeatureDecoder(16, encoder.width).requires_grad_(False),
            None,
            FieldMeta("gad", 16, encoder.width),
        )
        for _ in range(3)
    ]

    def ask(fields: Sequence[LanguageField]) -> Tensor:
        maps = [relevancy_maps(field, camera, [PHRASE], encoder, QueryConfig(exact=True)) for field in fields]
        return torch.stack(maps).amax(dim=0)

    three, one = bench.time(lambda: ask(levels), lambda: ask(levels[:1]), repeats=1)
    return [
        Figure("three fields : one, wall", three.wall_ms / one.wall_ms, "x", ">= 2"),
        Figure("three fields : one, CPU", three.cpu_ms / one.cpu_ms, "x"),
    ]
