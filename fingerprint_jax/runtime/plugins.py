"""Code of the user's own: a name such as `mypkg.scores:my_score` in a config is a function or class of an installed package.

What the command line names is imported, as it is the user's word. A config.json that lies in a folder is not: what it names is
imported only where the command line names the package too, by `--plugins=mypkg`.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from fingerprint_jax.runtime import names
from fingerprint_jax.runtime.files import digest, litter

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FIELDS = ("name", "beside")  # the last parts of the fields that name code
_trusted: dict[str, str] = {}  # packages that the command line of this process names, and digests of their files


def dotted(name: str) -> bool:
    """Whether a name is one of a package, `package.module:name`."""
    return bool(_NAME.fullmatch(name))


def packages(config: ConfigDict) -> set[str]:
    """The packages that a config, or one inside it, names."""
    found = set()
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= packages(value)
        elif key in _FIELDS and isinstance(value, str):  # of several backbones each
            found |= {re.split("[.:]", name)[0] for name in value.split("+") if dotted(name)}
    return found


def trust(named: Iterable[str]) -> None:
    """Lets `find` import from packages; for names from the command line alone."""
    for package in set(named) - _trusted.keys():
        _trusted[package] = _digest(package)  # before anything of it is imported


def code(config: ConfigDict) -> dict[str, str]:
    """{package: digest of its files} of what a config names, {} for none: what is kept of results hangs on it."""
    return {package: _trusted[package] for package in sorted(packages(config)) if package in _trusted}


def same(config: ConfigDict, known: object) -> bool:
    """Whether the code that a config names is that of digests as `code` gave them, as far as they or this process know it."""
    return isinstance(known, dict) and all(known.get(package, digest) == digest for package, digest in code(config).items())


def _digest(package: str) -> str:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    found = ((path, folder) for folder in folders for path in sorted(folder.rglob("*")) if not path.is_dir())
    files = [(path, folder) for path, folder in found if "__pycache__" not in path.parts and not litter(path.name)]
    if spec and spec.origin and not files:
        files = [(Path(spec.origin), Path(spec.origin).parent)]
    code = hashlib.sha256()
    for path, folder in files:
        code.update(f"{path.relative_to(folder)} {digest(path) if path.is_file() else ''}\n".encode())
    return code.hexdigest()[:16]


def define_flag(values: flags.FlagValues) -> None:
    """`--plugins`, for a binary that reads runs; call `trust` with it."""
    text = "Packages, beside this one, that the configs of runs may import code from: docs/extending.md."
    flags.DEFINE_list("plugins", [], text, flag_values=values)


def find(field: str, name: str) -> Any:
    """What a dotted name is of.

    Raises ValueError, which names the field, for a package that is not trusted, one that cannot be imported, and a name that is
    not in it.
    """
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if package not in _trusted:
        raise ValueError(f"{field}={name!r} is code of the package {package}: allow its import by --plugins={package}")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever its own code raises
        reason = f"{type(error).__name__}: {error}"
        remedy = f"install the package {package}, or put the folder that holds it on PYTHONPATH"
        raise ValueError(f"{field}={name!r}: {module} cannot be imported ({reason}); {remedy}") from error
    if not hasattr(found, attribute):
        raise ValueError(f"{field}={name!r}: {module} has no {attribute!r}{names.hint(attribute, vars(found)).rstrip('; ')}")
    return getattr(found, attribute)
