"""A small stand-in WebUI: loads the real script, calls its hooks as WebUIs do, and serves a page and an HTTP API.

`modules/` is what extensions import as `modules`; `stand_in.start` puts it in that place. Read `modules/processing.py`
to learn when a WebUI calls which hook.
"""
