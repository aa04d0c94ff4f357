"""What a WebUI says about itself."""

from lib_layerdiffusion.version import __version__


def git_tag() -> str:
    """The WebUI's version."""
    return f"stand-in {__version__}"
