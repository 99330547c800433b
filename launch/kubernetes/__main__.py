"""Renders the unfinished rows of a sweep as JobSets, one a row, for `kubectl apply`.

python -m launch.kubernetes --sweep=sweeps/lr --path=/mnt/sweeps/lr --claim=fingerprint --mount=/mnt --image=IMAGE \
    --accelerator=h100:1 --output=lr.yaml
"""

from fingerprint_jax.runtime import cli
from launch import kubernetes

cli.run("kubernetes", kubernetes.define_flags, kubernetes.main)
