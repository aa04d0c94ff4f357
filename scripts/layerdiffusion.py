"""The WebUI's way in: loads the package that lies beside this folder and shows the script to the WebUI."""

import logging
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent

# Another LayerDiffusion extension may have put a package of the same name there; each keeps what it imported already.
for name in [name for name in sys.modules if name.partition(".")[0] == "lib_layerdiffusion"]:
    if not str(getattr(sys.modules[name], "__file__", None) or FOLDER).startswith(str(FOLDER)):
        logging.getLogger("layerdiffusion").warning("%s belongs to another extension; ours takes its name", name)
        del sys.modules[name]
sys.path.insert(0, str(FOLDER))

from lib_layerdiffusion.webui.extension import Extension  # noqa: E402
from lib_layerdiffusion.webui.script import make_script  # noqa: E402

extension = Extension(FOLDER)
Script = make_script(extension)
extension.register()
