"""The WebUI's entry point: loads the package that lies next to this folder and registers the extension."""

import logging
import sys
from pathlib import Path

FOLDER, NAME = Path(__file__).resolve().parent.parent, "lib_layerdiffusion"

# Another LayerDiffusion extension may have put a package of this name there. A folder without an __init__.py shares the
# name (see ours); anything else is dropped, and keeps what it imported already.
other = sys.modules.get(NAME)
if other is not None and FOLDER not in Path(getattr(other, "__file__", None) or "/").resolve().parents:
    logging.getLogger("layerdiffusion").warning("Another extension has a package %s, too: %s", NAME, [*other.__path__])
    for name in [name for name in sys.modules if name.startswith(f"{NAME}.") and getattr(other, "__file__", None)]:
        del sys.modules[name]
    del sys.modules[NAME]
sys.path.insert(0, str(FOLDER))

from lib_layerdiffusion.webui import registration, scene_script, script  # noqa: E402
from lib_layerdiffusion.webui.extension import Extension  # noqa: E402
from lib_layerdiffusion.webui.extras import make_extras  # noqa: E402

extension = Extension()
Script, SceneScript = script.make_script(extension), scene_script.make_scene_script(extension)
ExtrasScript, LastExtrasScript = make_extras()
registration.register(extension)
