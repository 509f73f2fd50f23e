"""Configurations; a package, so that they can be found."""
