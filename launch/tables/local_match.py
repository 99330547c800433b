"""What is free in `local_match`: patch, radius and share of the patches, for `launch.power` on phantoms; no real image decides.

Phantoms are registered: their synthetic images are moved about.

python -m launch.power --file=launch/tables/local_match.py --leaks=0,0.3,1 --draws=5 --output=power_local_match
"""

import itertools

from launch.systems import Row

PATCHES, RADII, SHARES = (8, 16, 32), (0, 1, 4, 8), (1.0, 0.25)


def rows() -> list[Row]:
    """The grid, then calibrated pixels to compare it with."""
    found = []
    for patch, radius, top in itertools.product(PATCHES, RADII, SHARES):
        options = {"patch": patch, "stride": patch // 2, "radius": radius, "top": top}
        overrides = {f"member.estimator.{name}": value for name, value in options.items()} | {"member.features.name": "registered"}
        name = f"patch{patch}-radius{radius}-top{top:g}"
        found.append(Row(name, "subtask1/local_match", overrides, networks=0))
    return [*found, Row("gan_leaks", "subtask1/gan_leaks", networks=0)]
