"""The version of the package, in a place that everything can import without a circle."""

__version__ = "0.1.0"
