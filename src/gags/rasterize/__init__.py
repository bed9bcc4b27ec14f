"""Rendering of Gaussians: gsplat's interface on any device, and frozen views as sparse matrices."""

from gags.rasterize._api import rasterization as rasterization
from gags.rasterize._blend import BlendWeights as BlendWeights
from gags.rasterize._blend import blend_weights as blend_weights
from gags.rasterize._render import Rendering as Rendering
from gags.rasterize._render import render as render
from gags.rasterize._render import render_values as render_values
