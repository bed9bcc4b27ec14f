"""RGB training of the Gaussians, and how good it is."""

from gags.reconstruct._config import ReconstructConfig as ReconstructConfig
from gags.reconstruct._initial import initial_gaussians as initial_gaussians
from gags.reconstruct._initial import scene_extent as scene_extent
from gags.reconstruct._quality import FAR_BELOW_DB as FAR_BELOW_DB
from gags.reconstruct._quality import ViewQuality as ViewQuality
from gags.reconstruct._quality import badly_explained as badly_explained
from gags.reconstruct._quality import measure_views as measure_views
from gags.reconstruct._ssim import psnr as psnr
from gags.reconstruct._ssim import ssim as ssim
from gags.reconstruct._state import ReconstructState as ReconstructState
from gags.reconstruct._train import reconstruct as reconstruct
