"""The language field: small features on Gaussians, learned (``distill``) or lifted in closed form (``lift``, ``galift``)."""

from gags.distill._decoders import FeatureDecoder as FeatureDecoder
from gags.distill._decoders import GranularityDecoder as GranularityDecoder
from gags.distill._decoders import LinearDecoder as LinearDecoder
from gags.distill._distill import DistillConfig as DistillConfig
from gags.distill._distill import DistillState as DistillState
from gags.distill._distill import Levels as Levels
from gags.distill._distill import distill as distill
from gags.distill._field import FieldMeta as FieldMeta
from gags.distill._field import LanguageField as LanguageField
from gags.distill._galift import GaliftConfig as GaliftConfig
from gags.distill._galift import galift as galift
from gags.distill._lift import LiftConfig as LiftConfig
from gags.distill._lift import lift as lift
from gags.distill._targets import ViewLabels as ViewLabels
from gags.distill._targets import target_feature_map as target_feature_map
from gags.distill._targets import view_labels as view_labels
