"""A regular package, so that another of the same name in a WebUI's environment can't hide it."""
