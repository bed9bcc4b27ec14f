"""The page: fly through a run, ask it, edit what is shown, save what was found. A browser draws it, viser carries it."""

from gags.view._live import LiveView as LiveView
from gags.view._server import Page as Page
from gags.view._server import ViewConfig as ViewConfig
from gags.view._server import serve as serve
