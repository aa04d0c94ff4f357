"""Training of the latent transparency networks and of UNets that use them."""
