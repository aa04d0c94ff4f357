"""One file per world that LayerDiffusion works in; each adapts it to the Host protocol and imports no other."""
