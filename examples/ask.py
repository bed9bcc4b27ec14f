# %% [markdown]
# # Ask a scene
# A finished run (`gags demo` makes one in `runs/demo`) answers free text: in a view, and in space.

# %%
from pathlib import Path

import gags
from gags.images import colormap, draw_box, draw_mask, overlay, write_image

RUN = Path("runs/demo")
PHRASE = "coffee cup"
OUT = Path("asked")

field = gags.load(RUN)
print(f"{len(field.views)} photographs, {len(field.gaussians)} splats")

# %% [markdown]
# ## In space
# Which splats are it? Their ids, where they are, and how large that is, in scene units.

# %%
selection = field.query_3d(PHRASE)
print(f"{len(selection.gaussian_ids)} splats, score {selection.score:.2f}, centre {selection.centroid_world}")

# %% [markdown]
# ## In a view
# The photograph that shows them best; any other camera does as well.

# %%
view = field.best_view(selection)
hit = field.query(PHRASE, view.camera)
print(f"{view.name}: point {hit.point_xy_px}, box {hit.box_xyxy_px}, score {hit.score:.2f}")

# %%
photo = view.image()
found = draw_mask(photo, hit.mask)
if hit.box_xyxy_px is not None:
    found = draw_box(found, hit.box_xyxy_px)
write_image(OUT / "found.png", found)
write_image(OUT / "heat.png", overlay(photo, hit.heat))
write_image(OUT / "relevancy.png", colormap(hit.relevancy))

# %% [markdown]
# ## What the field has learned
# The granularity that each place trusts (red subpart, green part, blue whole), and its features as colours.

# %%
for mode in ("rgb", "depth", "granularity", "feature"):
    write_image(OUT / f"{mode}.png", field.render(view.camera, mode))
print(f"pictures in {OUT}/")
