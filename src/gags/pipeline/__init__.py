"""The chain from photographs to a searchable field: joins stage functions to the run folder, in order."""

from gags.pipeline._config import RunConfig as RunConfig
from gags.pipeline._run import run as run
