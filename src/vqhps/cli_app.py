"""Command `vqhps app`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vqhps.errors import VqhpsError


@dataclass
class App:
    """Serve a web page that takes photos and short clips, and gives overlays, 3D views and files. Nothing is kept."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets in everybody who can reach this computer."""
    port: int = 7860
    """Port to listen on."""
    open_browser: bool = False
    """Open the page in the default browser."""
    bundle: Path | None = None
    """Folder of another model; the shipped one by default."""

    def run(self) -> int:
        """Until Ctrl-C."""
        if find_spec("gradio") is None:
            raise VqhpsError('this command needs gradio: pip install "vqhps[app]"')
        from vqhps.app.server import serve

        serve(self.host, self.port, self.open_browser, self.bundle)
        return 0
