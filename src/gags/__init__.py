"""Search a 3D scene in your own words: ``gags.load("runs/kitchen").query_3d("red mug")``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gags.field import Field as Field
    from gags.field import load as load

__all__ = ["Field", "load"]


def __getattr__(name: str) -> Any:
    # torch and the rest take seconds to import: only for who uses them
    if name in __all__:
        from gags import field

        return getattr(field, name)
    raise AttributeError(f"module 'gags' has no attribute {name!r}")
