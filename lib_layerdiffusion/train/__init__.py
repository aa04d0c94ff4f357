"""Training of the latent transparency networks and of UNets that use them."""

from .command import main as main
