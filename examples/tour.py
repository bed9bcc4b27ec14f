# %% [markdown]
# # What is in here? A list and a flight
# The field's clusters, with the words that fit them best, and a video along a smooth path through the cameras.

# %%
from pathlib import Path

import gags
from gags.paths import interpolated_path
from gags.pictures import painter, write_thing_crops
from gags.progress import track
from gags.query import VOCABULARY
from gags.video import write_video

RUN = Path("runs/demo")
OUT = Path("toured")

field = gags.load(RUN)

# %% [markdown]
# ## The list
# Names are chosen from a vocabulary: by default about a hundred everyday things, here with one more.

# %%
inventory = field.inventory((*VOCABULARY, "framed photograph"))
crops = write_thing_crops(field.run.scene, inventory.things[:8], OUT)
for thing, crop in zip(inventory.things, crops, strict=False):
    names = ", ".join(f"{phrase} {score:.2f}" for phrase, score in thing.phrases[:3])
    print(f"{names}: {len(thing.gaussian_ids)} splats around {thing.centroid_world.tolist()}, {crop}")

# %% [markdown]
# ## The flight
# A painter keeps the meaning of its colours from frame to frame.

# %%
path = interpolated_path([view.camera.limited(320) for view in field.views[:6]], n_frames=24)
paint = painter(field.run, path, "granularity", None, None, field.config)
frames = write_video(OUT / "tour.mp4", (paint(camera) for camera in track(path, "render")), fps=12)
print(f"{frames} frames in {OUT / 'tour.mp4'}")
