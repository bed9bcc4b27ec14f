"""Posed photographs: the only door for outside data."""

from gags.scene._load import SceneConfig as SceneConfig
from gags.scene._load import load_scene as load_scene
from gags.scene._photos import positions_in_photograph as positions_in_photograph
from gags.scene._scene import Scene as Scene
from gags.scene._scene import View as View
from gags.scene._store import camera_to_json as camera_to_json
from gags.scene._store import read_camera as read_camera
from gags.scene._store import read_cameras as read_cameras
from gags.scene._store import read_scene as read_scene
from gags.scene._store import save_scene as save_scene
