"""The command `layerdiffusion webui`: the page and the API on this machine only."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from lib_layerdiffusion.embedded import EMBEDDED, model_path
from lib_layerdiffusion.hosts.pipelines import load_pipeline
from lib_layerdiffusion.refusal import Parser, Refusal, integer

ADDRESS = "127.0.0.1"
logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--port", type=integer(1, 65535), default=7861, help="default: 7861")
    parser.add_argument("--no-browser", action="store_true", help="don't open the page in a browser")
    parser.add_argument("--model", default=EMBEDDED, metavar="MODEL", help="as for `generate`; default: embedded")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="folder of the layer weight files")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--offline", action="store_true", help="never download; name the missing file instead")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    check_port(arguments.port)
    import uvicorn

    from lib_layerdiffusion.stand_in.launch import running

    is_embedded = arguments.model == EMBEDDED
    pipe = load_pipeline(model_path(arguments.model), device=arguments.device, offline=arguments.offline or is_embedded)
    settings = {"outputs": arguments.out, "weights": arguments.weights, "offline": arguments.offline or is_embedded}
    address = f"http://{ADDRESS}:{arguments.port}"
    with running(pipe, arguments.model, **settings) as stand_in:
        logger.warning("The page is at %s, the API at %s/sdapi/v1; Ctrl-C ends both.", address, address)
        if not arguments.no_browser:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        uvicorn.run(stand_in.app, host=ADDRESS, port=arguments.port, log_level="warning")
    return 0


def check_port(port: int) -> None:
    """Refuse a port that is taken, before the model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise Refusal(
                f"Port {port} can't be used ({error.strerror}): choose another with --port, or make webui PORT=7862."
            ) from error


def main(words: Sequence[str]) -> int:
    """Parse the words after `webui` and serve."""
    parser = Parser(prog="layerdiffusion webui", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(words))
