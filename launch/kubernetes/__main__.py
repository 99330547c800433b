"""python -m launch.kubernetes."""

from fingerprint_jax import cli
from launch import kubernetes

cli.run("kubernetes", kubernetes.define_flags, kubernetes.main)
