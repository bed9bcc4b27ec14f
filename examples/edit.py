# %% [markdown]
# # Edit a scene with words
# What a phrase names can be taken out, kept alone, or painted. The files are ordinary splat scenes, and what is not edited
# keeps its order and every bit.

# %%
from pathlib import Path

import gags
from gags.edits import ChoiceConfig
from gags.gaussians import write_splats
from gags.images import write_image
from gags.rasterize import render

RUN = Path("runs/demo")
PHRASE = "coffee cup"
OUT = Path("edited")

field = gags.load(RUN)
view = field.best_view(field.query_3d(PHRASE))

# %% [markdown]
# `ChoiceConfig` cleans the find first: its largest connected part here.

# %%
choice = ChoiceConfig(largest=True)
scenes = {
    "alone": field.select(PHRASE, choice),
    "without": field.remove(PHRASE, choice),
    "painted": field.recolor(PHRASE, (60, 220, 120), choice=choice),
}

# %%
for name, scene in scenes.items():
    write_splats(OUT / f"{name}.ply", scene)
    colors = render(scene, view.camera).colors
    write_image(OUT / f"{name}.png", (colors.clamp(0, 1) * 255).round().byte())
    print(f"{name}: {len(scene)} of {len(field.gaussians)} splats")
print(f"scenes and pictures in {OUT}/")
