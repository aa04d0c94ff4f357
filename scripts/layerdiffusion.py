"""The WebUI's entry point: loads the package that lies next to this folder and registers the extension."""

import logging
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent

# Another LayerDiffusion extension may have put a package of the same name there; each keeps what it imported already.
for name in [name for name in sys.modules if name.partition(".")[0] == "lib_layerdiffusion"]:
    if not str(getattr(sys.modules[name], "__file__", None) or FOLDER).startswith(str(FOLDER)):
        logging.getLogger("layerdiffusion").warning("%s belongs to another extension and is replaced", name)
        del sys.modules[name]
sys.path.insert(0, str(FOLDER))

from lib_layerdiffusion.webui.extension import Extension  # noqa: E402
from lib_layerdiffusion.webui.registration import register  # noqa: E402
from lib_layerdiffusion.webui.script import make_script  # noqa: E402

extension = Extension()
Script = make_script(extension)
register(extension)
