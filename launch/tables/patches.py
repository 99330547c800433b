"""What the choices of our attacks by patches bring on phantoms, where no label of a real image chooses: for launch.power.

python -m launch.power --file=tables/patches --leaks=0,0.5,1 --draws=10 --output=power/patches
"""

from typing import Any

from launch.systems import Row

PATCHES = (8, 12, 16, 24, 32)  # pixels of 64; a patch begins every half of it
SEVERAL = (8, 16, 32)


def rows() -> list[Row]:
    """Each direction at several sizes of patches, votes at several widths, then what is made of several."""
    directions = {"local_match": {"gallery": {"rivals": ()}}, "mosaic": {}}
    found = [
        Row(f"{name}, {patch} px", f"subtask1/{name}", {f"member.estimator.{field}": of for field, of in _grid(patch).items()})
        for name in directions
        for patch in PATCHES
    ]
    found += [Row(f"mosaic, width {width}", "subtask1/mosaic", {"member.estimator.width": width}) for width in (0.05, 0.2, 0.4)]
    found += [Row(f"local_match, top {top}", "subtask1/local_match", {"member.estimator.top": top}) for top in (0.1, 0.5, 1.0)]
    variants = {
        f"{name}{patch}": {"estimator": {"name": name, **_grid(patch)}, **fields}
        for name, fields in directions.items()
        for patch in SEVERAL
    }
    for name in directions:
        own = {variant: fields for variant, fields in variants.items() if variant.startswith(name)}
        found.append(Row(f"{name}, mean rank of {_listed()}", "subtask1/both_directions", {"ensemble.variants": own}))
    found.append(Row("both_directions, 16 px", "subtask1/both_directions", {}))
    found.append(Row(f"both_directions, mean rank of {_listed()}", "subtask1/both_directions", {"ensemble.variants": variants}))
    return found


def _grid(patch: int) -> dict[str, Any]:
    return {"patch": patch, "stride": patch // 2}


def _listed() -> str:
    return ", ".join(map(str, SEVERAL)) + " px"
