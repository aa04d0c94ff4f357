"""The small WebUI of `make webui`, which is also the tests' host: it runs the real script, a page and an HTTP API.

`launch.py` starts and stops it, `command.py` is its command line, `model.py` the loaded checkpoint, `host.py` the
adapter for that, `traits.py` what differs between the WebUIs that it can act like. `modules/` is what extensions
import as `modules`; read `modules/processing.py` to learn when a WebUI calls which hook.
"""
