"""Entry of `python -m lib_layerdiffusion`."""

from lib_layerdiffusion.cli import run

if __name__ == "__main__":
    run()
