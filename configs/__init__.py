"""The Hydra configuration groups; a package so that an installed wheel finds them."""
