"""Where checkpoints exported by version 0.1 look for their classes, which are in `embedded.narrow_ldm` now."""

from lib_layerdiffusion.embedded.narrow_ldm import NarrowAutoencoder, NarrowUNet, open_text_encoder

__all__ = ["NarrowAutoencoder", "NarrowUNet", "open_text_encoder"]
