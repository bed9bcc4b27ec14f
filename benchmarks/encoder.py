"""How good the built-in encoder is by itself: the labelled mask is given, which phrase fits it best?

    python benchmarks/encoder.py --scenes-dir ../shared/scenes

For every labelled object of *bonsai* the rank of its phrase among all labels' phrases and the names of other things in a household,
and whether its mask is the one in its photograph that fits its phrase best. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import torch

from gags.encode import make_encoder, make_tiles
from gags.evaluate import load_labels
from gags.images import read_image
from gags.query import QueryConfig

DISTRACTORS = [
    "lamp",
    "curtain",
    "window",
    "book",
    "table",
    "cup",
    "plate",
    "keyboard",
    "monitor",
    "speaker",
    "guitar",
    "shoe",
    "hat",
    "clock",
    "mirror",
    "pillow",
    "bed",
    "sofa",
    "bookshelf",
    "candle",
    "vase",
    "painting",
    "backpack",
    "umbrella",
    "bottle opener",
    "radiator",
    "ceiling",
    "wall",
    "wooden floor",
    "television",
    "telephone",
    "camera",
    "dog",
    "cat",
    "car",
    "tree",
    "grass",
    "sky",
    "toy truck",
    "basketball",
    "teddy bear",
    "scissors",
    "towel",
    "bucket",
    "broom",
    "fan",
    "microwave",
    "refrigerator",
    "toaster",
    "spoon",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    scene = options.scenes_dir / "bonsai"
    encoder = make_encoder("conse")
    frames, phrases, vectors = [], [], []
    for frame in load_labels(scene / "labels").frames:
        image = read_image(scene / "images" / frame.image_name)
        for label in frame.labels:
            frames.append(frame.image_name)
            phrases.append(label.category)
            vectors.append(encoder.encode_tiles(make_tiles(image, label.mask[None], encoder.tile_px)))
    asked = [*sorted(set(phrases)), *DISTRACTORS]
    likeness = torch.cat(vectors) @ encoder.encode_phrases(asked).T
    negatives = torch.cat(vectors) @ encoder.encode_phrases(QueryConfig().negatives).T
    margin = likeness - negatives.amax(dim=1, keepdim=True)

    ranks, best = defaultdict(list), []
    for row, (name, phrase) in enumerate(zip(frames, phrases, strict=True)):
        column = asked.index(phrase)
        ranks[phrase].append(1 + int((likeness[row] > likeness[row, column]).sum()))
        rivals = [other for other, frame in enumerate(frames) if frame == name]
        best.append(max(rivals, key=lambda other, column=column: float(margin[other, column])) == row)
    every = [rank for of_phrase in ranks.values() for rank in of_phrase]
    result = {
        "encoder": encoder.name,
        "objects": len(every),
        "phrases": len(asked),
        "top_1": statistics.mean(rank == 1 for rank in every),
        "top_3": statistics.mean(rank <= 3 for rank in every),
        "best_mask_of_its_photograph": statistics.mean(best),
        "median_rank": {phrase: statistics.median(of_phrase) for phrase, of_phrase in sorted(ranks.items())},
    }
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
