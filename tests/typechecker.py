"""The checker of shapes and types that the import hook applies to lemmse: an int serves where a float is asked for."""

from typing import Any

from beartype import BeartypeConf, beartype


def check(function):
    """Make the function that checks a call.

    jaxtyping makes two of them for each function of the package: one is called with the arguments, the other, after the
    call, with these and the result. The sizes that the first has met are known to the second, which need not look at
    the arguments once more.
    """
    result = function.__annotations__.get("return", Any)
    if result is not Any:
        function.__annotations__ = {"return": result}
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
