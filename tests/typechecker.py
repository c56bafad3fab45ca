"""The checker of shapes and types that the import hook applies to lemmse: an int serves where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
