"""Masks at three granularities for every view."""

from gags.segment._masks import arrays_to_view_masks as arrays_to_view_masks
from gags.segment._masks import mask_boxes as mask_boxes
from gags.segment._masks import mask_nms as mask_nms
from gags.segment._masks import view_masks_to_arrays as view_masks_to_arrays
from gags.segment._models import SegmenterName as SegmenterName
from gags.segment._models import make_segmenter as make_segmenter
from gags.segment._prompts import nearest_depth_map as nearest_depth_map
from gags.segment._prompts import nearest_depths as nearest_depths
from gags.segment._segment import Prompts as Prompts
from gags.segment._segment import SegmentConfig as SegmentConfig
from gags.segment._segment import segment as segment
from gags.segment._segment import segment_view as segment_view
from gags.segment._types import LEVELS as LEVELS
from gags.segment._types import Granularity as Granularity
from gags.segment._types import GranularMasks as GranularMasks
from gags.segment._types import MaskProposals as MaskProposals
from gags.segment._types import PreparedImage as PreparedImage
from gags.segment._types import Segmenter as Segmenter
from gags.segment._types import ViewMasks as ViewMasks
from gags.segment.hierarchy import HierarchyConfig as HierarchyConfig
from gags.segment.hierarchy import HierarchySegmenter as HierarchySegmenter
from gags.segment.sam import SamSegmenter as SamSegmenter
