"""The commands that run the authority. :mod:`privyseal_ca.cli.frame` is what they share."""
