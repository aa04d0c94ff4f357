"""Read by a WebUI before it parses its command line: adds the extension's two flags."""

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Add flags for where weight files lie and whether they may be downloaded."""
    group = parser.add_argument_group("LayerDiffusion")
    group.add_argument("--layerdiffusion-dir", metavar="FOLDER", help="weight files (default: models/layer_model)")
    group.add_argument("--layerdiffusion-offline", action="store_true", help="never download weight files")
