"""Names of everyday things, for the question what a place or a thing is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.query._query import QueryConfig, phrase_vectors
from gags.query._relevancy import relevancy

_WORDS = """
wall, floor, ceiling, window, door, curtain, carpet, stairs, shelf, cupboard, table, desk, chair, sofa, bench, bed,
pillow, blanket, lamp, mirror, picture, clock, vase, flower, plant, tree, grass, leaf, fruit, apple, banana, orange,
bread, cake, bottle, coffee cup, mug, glass, plate, bowl, spoon, fork, knife, pan, pot, kettle, toaster, oven,
refrigerator, sink, towel, book, newspaper, pen, bag, box, basket, bucket, toy, teddy bear, ball, camera, tripod,
telephone, keyboard, computer mouse, laptop, screen, television, loudspeaker, guitar, piano, hat, shoe, jacket,
umbrella, bicycle, motorcycle, car, truck, bus, boat, airplane, rocket, street, fence, stone, brick, wood, metal,
sand, water, sky, cloud, mountain, house, person, hand, face, cat, dog, bird, horse, cow
"""


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The phrases of a text file, one a line.

    Raises:
        GagsError: no such file, or no phrase in it.
    """
    try:
        phrases = split_vocabulary(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GagsError(f"{path}: expected a text file with a phrase a line, found none ({error})") from error
    if not phrases:
        raise GagsError(f"{path}: expected a phrase a line, found an empty file; write down what may be in the scene")
    return phrases


def split_vocabulary(text: str) -> tuple[str, ...]:
    """Phrases separated by line ends, commas or semicolons, each once."""
    words = text.replace(",", "\n").replace(";", "\n").splitlines()
    return tuple(dict.fromkeys(phrase for word in words if (phrase := word.strip())))


def rank_phrases(
    vectors: Float[Tensor, "thing width"],
    scene_mean: Float[Tensor, " width"],
    vocabulary: Sequence[str],
    encoder: ImageTextEncoder,
    config: QueryConfig,
) -> list[list[tuple[str, float]]]:
    """For each thing of a scene all phrases of a vocabulary, best first, with a score in 0..1.

    Some phrases resemble everything ("picture", "hand"): a thing is described by those that fit it better than they fit the
    scene. The score is ``relevancy`` of the difference from the scene's mean; 0.5 is what the hardest negative gets. Equal
    phrases stay in the vocabulary's order.

    Args:
        vectors: unit vectors of things.
        scene_mean: mean of the unit vectors of everything in the scene, not normalised.

    Raises:
        GagsError: an empty vocabulary or phrase.
    """
    positives, negatives = phrase_vectors(vocabulary, encoder, config)
    scores = relevancy(vectors - scene_mean, positives, negatives, config.temperature).T
    ranked = []
    for row in scores:
        order = row.argsort(descending=True, stable=True).tolist()
        ranked.append([(vocabulary[index], float(row[index])) for index in order])
    return ranked


VOCABULARY = split_vocabulary(_WORDS)
"""What is looked for where nobody says what."""
