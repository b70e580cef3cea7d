"""The server of the page: where it listens, what it may do, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqhps.app.guard import Guard
from vqhps.app.limits import Limits
from vqhps.app.sessions import Sessions
from vqhps.app.work import Worker
from vqhps.errors import VqhpsError

logger = logging.getLogger(__name__)

KEPT = 3600
"""s: files go after this time even if their page stays open."""

_CALLS = 64  # of the page, waiting to be taken


def serve(host: str, port: int, open_browser: bool, bundle: Path | None = None, limits: Limits = Limits()) -> None:
    """Serve the page until the process is interrupted or terminated; nothing of it is left then.

    Args:
        host: address to listen on; anybody who reaches it can use the page.
        port: number; taken ports are an error.
        open_browser: open the page in the default browser.
        bundle: folder of a model; the shipped one by default.
        limits: of files and time.

    Raises:
        VqhpsError: the model cannot be loaded, or the address not be listened on.
    """
    _check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="vqhps-app-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        _keep_private(root)
        worker = Worker(bundle, limits)
        from vqhps.app.page import build

        sessions = Sessions(root)
        page = build(worker, sessions, KEPT)
        try:
            address = _launch(page, root, host, port, limits)
            logger.info("vqhps app: %s (Ctrl-C ends it)", address)
            if open_browser:
                webbrowser.open(address)
            _wait(lambda: sessions.expire(KEPT))
        finally:
            worker.line.close()
            page.close()


def _keep_private(root: Path) -> None:
    """Let libraries write below `root` only and report nothing to anybody; they read these when they are loaded."""
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is up
    tempfile.tempdir = str(root)  # uploads that are broken off


def _check_address(host: str, port: int) -> None:
    """Raise `VqhpsError` where nobody can listen on this address."""
    if not 0 < port < 65536:
        raise VqhpsError(f"a port is a number from 1 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise VqhpsError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose others with --host, --port"
        ) from error


def _launch(page: Any, root: Path, host: str, port: int, limits: Limits) -> str:
    """Start the server in threads of its own and return the page's address."""
    import gradio as gr
    from starlette.middleware import Middleware

    from vqhps.app.show import CSS

    page.queue(max_size=_CALLS, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=max(limits.photo_bytes, limits.clip_bytes),
        app_kwargs={"middleware": [Middleware(Guard, root=root)], "docs_url": None, "redoc_url": None},
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )
    return str(page.local_url)


def _wait(tidy: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM, tidying up now and then."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(0.5):  # without a limit Windows would not see Ctrl-C
        tidy()
