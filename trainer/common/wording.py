"""Words of messages that depend on a number."""


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return `1 image` or `3 images`. Args: plural: where it is not the noun with an s."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"
