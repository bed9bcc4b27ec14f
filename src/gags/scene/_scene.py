"""Scene and View: posed photographs of one place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor

from gags.errors import GagsError
from gags.geometry import Camera
from gags.images import read_image, resize_image
from gags.scene._colmap import SparseCamera


@dataclass(frozen=True)
class View:
    """One photograph and its camera. The pixels are read when asked for."""

    name: str
    """Exact file name of the photograph, extension included: what labels and flags refer to."""
    camera: Camera
    """The camera at the working resolution of the scene."""
    image_path: Path
    """The photograph on disk."""
    held_out: bool = False
    """True: used for nothing but evaluation."""
    lens: SparseCamera | None = None
    """What took the photograph, where its distortion was taken out of ``image_path``; None: nothing was changed."""

    def image(self, max_side_px: int | None = None) -> UInt8[Tensor, "height width 3"]:
        """The photograph at the size of ``self.camera.limited(max_side_px)``."""
        camera = self.camera.limited(max_side_px)
        return resize_image(read_image(self.image_path), camera.width, camera.height)


@dataclass(frozen=True)
class Scene:
    """Posed photographs and the sparse points their cameras were made from."""

    views: tuple[View, ...]
    """Sorted by name."""
    points: Float[Tensor, "point 3"]
    """Sparse points in the world."""
    point_colors: UInt8[Tensor, "point 3"]
    """Their colours, RGB."""
    left_out: tuple[str, ...] = ()
    """Names of photographs that are no views: thinned out by ``SceneConfig.every``, or without a camera."""

    @property
    def training_views(self) -> tuple[View, ...]:
        """The views that stages may learn from."""
        return tuple(view for view in self.views if not view.held_out)

    @property
    def held_out_views(self) -> tuple[View, ...]:
        """The views kept for evaluation alone."""
        return tuple(view for view in self.views if view.held_out)

    def view(self, name: str) -> View:
        """The view with this exact file name, or with this stem where that is unique."""
        matches = [view for view in self.views if view.name == name] or [
            view for view in self.views if Path(view.name).stem == name
        ]
        if len(matches) != 1:
            raise GagsError(
                f"view {name!r}: expected the file name of one of the scene's {len(self.views)} images, "
                f"found {len(matches)} that match; names run from {self.views[0].name} to {self.views[-1].name}"
            )
        return matches[0]

    def holding_out(self, names: set[str]) -> Scene:
        """The same scene with these views (exact names) held out as well."""
        views = tuple(replace(view, held_out=view.held_out or view.name in names) for view in self.views)
        return replace(self, views=views)
