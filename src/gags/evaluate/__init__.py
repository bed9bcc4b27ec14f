"""Labels, metrics and tables of the LERF-OVS benchmark."""

from gags.evaluate._evaluate import Evaluation as Evaluation
from gags.evaluate._evaluate import PairScore as PairScore
from gags.evaluate._evaluate import RelevancyOf as RelevancyOf
from gags.evaluate._evaluate import evaluate as evaluate
from gags.evaluate._labels import FrameLabels as FrameLabels
from gags.evaluate._labels import Label as Label
from gags.evaluate._labels import Labels as Labels
from gags.evaluate._labels import load_labels as load_labels
from gags.evaluate._metrics import iou as iou
from gags.evaluate._metrics import localised as localised
from gags.evaluate._tables import evaluation_table as evaluation_table
