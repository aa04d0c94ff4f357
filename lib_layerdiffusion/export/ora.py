"""OpenRaster: a zip of PNGs with a list of the layers, which Krita, GIMP and MyPaint read."""

from __future__ import annotations

import os
import re
import zipfile
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..layers import LayerStack, composite
from . import png, whole_file

THUMBNAIL = 256  # largest side, by the format's specification
MIMETYPE = "image/openraster"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML 1.0 can't hold


def write(stack: LayerStack, path: str | os.PathLike[str]) -> None:
    """Write the stack; the file appears whole or not at all. Refusal when it can't be written."""
    with whole_file(path) as file:
        write_to(stack, file)


def write_to(stack: LayerStack, file: BinaryIO) -> None:
    """Write the stack to an open file, in version 0.0.3 of the format."""
    width, height = stack.size
    image = ElementTree.Element("image", version="0.0.3", w=str(width), h=str(height))
    listed = ElementTree.SubElement(image, "stack")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", MIMETYPE, zipfile.ZIP_STORED)  # first and stored, so that the type is seen
        for index, layer in reversed(list(enumerate(stack.layers))):  # listed from the top
            source = f"data/layer{index}.png"
            x, y = layer.offset
            name = NOT_XML.sub("\N{REPLACEMENT CHARACTER}", layer.name)
            attributes = {"composite-op": "svg:src-over", "name": name, "src": source, "x": str(x), "y": str(y)}
            ElementTree.SubElement(listed, "layer", attributes)
            archive.writestr(source, png.encode(layer.image), zipfile.ZIP_STORED)
        merged = composite(stack)
        thumbnail = Image.fromarray(merged)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        archive.writestr("mergedimage.png", png.encode(merged), zipfile.ZIP_STORED)
        archive.writestr("Thumbnails/thumbnail.png", png.encode(np.asarray(thumbnail)), zipfile.ZIP_STORED)
        archive.writestr("stack.xml", ElementTree.tostring(image, "UTF-8", xml_declaration=True))
