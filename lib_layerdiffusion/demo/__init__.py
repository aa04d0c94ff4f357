"""The embedded model and what shows it; `model/` holds its weights."""
