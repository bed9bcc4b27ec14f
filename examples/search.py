"""Ask a finished run for a phrase: in its best view, and in 3D.

python examples/search.py runs/demo "coffee cup"
"""

import sys
from pathlib import Path

from gags.pictures import write_hit_pictures
from gags.query import QueryConfig, best_view, query, query_3d
from gags.runs import open_run

run = open_run(Path(sys.argv[1]))
phrase = sys.argv[2]
field, config = run.field(), QueryConfig()

(selection,) = query_3d(field, [phrase], run.encoder, config)
print(f"{len(selection.gaussian_ids)} Gaussians, centre {selection.centroid_world}, box {selection.box_world}")

view = best_view(field.gaussians, selection, run.scene.views)
(hit,) = query(field, view.camera, [phrase], run.encoder, config)
print(f"{view.name}: point {hit.point_xy_px}, box {hit.box_xyxy_px}, score {hit.score:.2f}")
print(write_hit_pictures(hit, view, Path("found"))["found"])
