"""Folders; `launch.start` sets them."""

script_path = ""
data_path = ""
models_path = ""
