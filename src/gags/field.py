"""A finished run as one object that answers: what ``gags.load`` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import Bool, Int32, UInt8
from torch import Tensor

from gags.distill import LanguageField
from gags.edits import ChoiceConfig, choose, recolored
from gags.encode import ImageTextEncoder
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.images import Rgb
from gags.inventory import Inventory, InventoryConfig, take_inventory
from gags.pictures import RenderMode, render_picture
from gags.query import VOCABULARY, Hit, QueryConfig, Selection, best_view, nearest_gaussians, query, query_3d
from gags.runs import FieldKind, Run, open_run
from gags.scene import View


@dataclass(frozen=True)
class Field:
    """A scene that can be asked what is where.

    ``field.query("mug", camera)`` looks into a view, ``field.query_3d("mug")`` into the scene, ``field.render(camera)`` makes a
    picture. What goes deeper is in ``field.run`` (everything that the run folder holds) and ``field.language`` (features and
    decoders).
    """

    run: Run
    """The opened run folder."""
    language: LanguageField
    """Features on the splats and their decoders."""
    config: QueryConfig
    """How relevancy becomes points, masks and selections."""

    @property
    def gaussians(self) -> Gaussians:
        """The splats."""
        return self.run.gaussians

    @property
    def views(self) -> tuple[View, ...]:
        """The photographs with their cameras, by name."""
        return self.run.scene.views

    def camera(self, view_name: str) -> Camera:
        """The camera of a photograph; a GagsError if no view has this name."""
        return self.run.scene.view(view_name).camera

    def query(self, phrase: str, camera: Camera) -> Hit:
        """Where in a view is it: relevancy, heat map, mask, point, box and score at the camera's size.

        Raises:
            GagsError: an empty phrase.
        """
        return query(self.language, camera, [phrase], self.run.encoder, self.config)[0]

    def query_3d(self, phrase: str) -> Selection:
        """Which splats are it: ids, centroid and box in scene units, score, relevancy of every splat.

        Raises:
            GagsError: an empty phrase.
        """
        return query_3d(self.language, [phrase], self.run.encoder, self.config, self._nearest)[0]

    @cached_property
    def _nearest(self) -> Int32[Tensor, "gaussian neighbour"]:
        return nearest_gaussians(self.gaussians.means, self.config.smooth_neighbours)

    def best_view(self, selection: Selection) -> View:
        """The photograph that shows a selection best."""
        return best_view(self.gaussians, selection, self.views)

    def render(
        self, camera: Camera, mode: RenderMode = "rgb", phrase: str | None = None
    ) -> UInt8[Tensor, "height width 3"]:
        """What a camera sees: colour, depth, features, granularity, or relevancy to a phrase.

        Raises:
            GagsError: granularity of a field that knows none.
        """
        return render_picture(self.run, camera, mode, phrase, self.language.meta.kind, self.config)

    def inventory(self, vocabulary: Sequence[str] = VOCABULARY, config: InventoryConfig | None = None) -> Inventory:
        """What is in the scene: clusters of splats with the phrases that fit them best.

        Raises:
            GagsError: a setting out of range, an empty vocabulary, or no cluster large enough.
        """
        return take_inventory(
            self.language, self.views, vocabulary, self.run.encoder, self.config, config or InventoryConfig()
        )

    def select(self, phrase: str, choice: ChoiceConfig | None = None) -> Gaussians:
        """The splats that a phrase names, alone; a GagsError if they are none or all."""
        return self.gaussians.subset(self._chosen(phrase, choice))

    def remove(self, phrase: str, choice: ChoiceConfig | None = None) -> Gaussians:
        """The scene without the splats that a phrase names; a GagsError if they are none or all."""
        return self.gaussians.subset(~self._chosen(phrase, choice))

    def recolor(self, phrase: str, color: Rgb, strength: float = 0.7, choice: ChoiceConfig | None = None) -> Gaussians:
        """The scene with the splats that a phrase names in another colour; a GagsError if they are none or all."""
        return recolored(self.gaussians, self._chosen(phrase, choice), color, strength)

    def _chosen(self, phrase: str, choice: ChoiceConfig | None) -> Bool[Tensor, " gaussian"]:
        return choose(self.language, [phrase], self.run.encoder, self.config, choice or ChoiceConfig())


def load(
    run: Path | str,
    kind: FieldKind | None = None,
    config: QueryConfig | None = None,
    encoder: ImageTextEncoder | None = None,
) -> Field:
    """Open a run folder made by ``gags run``.

    Args:
        kind: which of its fields; None: the one it was made with.
        config: how to search; None: the defaults.
        encoder: replaces the one that the run names.

    Raises:
        GagsError: no run folder, one of another version, or no such field in it.
    """
    opened = open_run(Path(run), encoder)
    return Field(opened, opened.field(kind), opened.query_config(config or QueryConfig()))
