"""Names that a user, or a stranger, gives: what is none of the known ones is one line with the nearest of them."""

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """One line that a terminal takes for text, whatever the names in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def duration(seconds: float) -> str:
    """`2.5 s`, `1 min 22 s`, `3 h 5 min`, `4 days 7 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' * (days > 1)} {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def check(field: str, name: object, known: Iterable[str]) -> None:
    """Raises ValueError with the nearest of the known names, and all of them, for one that is none of them."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{field}={name!r} is unknown{hint(name, known)}known: {', '.join(filter(None, known))}")


def check_option(section: str, option: str, of: str, known: Iterable[str]) -> None:
    """Raises ValueError for a field of a section of the config that is no option `of` what its name chooses."""
    known = sorted(known)
    if option not in known:
        raise ValueError(f"{section}.{option} is no option of {of}{hint(option, known)}known: {', '.join(known) or 'none'}")


def hint(name: object, known: Iterable[str]) -> str:
    """`: did you mean 'x'? ` where one of the known names is like a name, else `; `."""
    found = nearest(str(name), known)
    return f": did you mean {found!r}? " if found else "; "


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a name, whatever the case; '' where none is."""
    lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[found[0]] if found else ""
