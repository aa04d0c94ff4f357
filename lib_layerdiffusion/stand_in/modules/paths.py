"""Folders; `stand_in.start` sets them."""

script_path = ""
data_path = ""
models_path = ""
