"""Free text to points, masks, boxes, heat maps and Gaussians."""

from gags.query._query import Hit as Hit
from gags.query._query import QueryableField as QueryableField
from gags.query._query import QueryConfig as QueryConfig
from gags.query._query import find as find
from gags.query._query import query as query
from gags.query._query import relevancy_maps as relevancy_maps
from gags.query._query import teacher_relevancy as teacher_relevancy
from gags.query._query3d import Selection as Selection
from gags.query._query3d import best_view as best_view
from gags.query._query3d import query_3d as query_3d
from gags.query._query3d import render_selection as render_selection
from gags.query._relevancy import heat as heat
from gags.query._relevancy import majority_filter as majority_filter
from gags.query._relevancy import mean_filter as mean_filter
from gags.query._relevancy import peak as peak
from gags.query._relevancy import relevancy as relevancy
