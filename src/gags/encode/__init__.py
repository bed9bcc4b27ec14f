"""Masks to vectors in a space shared with phrases."""

from gags.encode._encode import EncodeConfig as EncodeConfig
from gags.encode._encode import EncoderName as EncoderName
from gags.encode._encode import adapted as adapted
from gags.encode._encode import encode as encode
from gags.encode._encode import make_encoder as make_encoder
from gags.encode._encode import scene_prior as scene_prior
from gags.encode._tiles import Outside as Outside
from gags.encode._tiles import make_tiles as make_tiles
from gags.encode._types import ImageTextEncoder as ImageTextEncoder
from gags.encode._types import MaskEmbeddings as MaskEmbeddings
from gags.encode.clip import ClipEncoder as ClipEncoder
