"""Finds the fingerprints that real medical images leave in synthetic ones."""

from typing import Any

from fingerprint_jax.runtime import environment

__version__ = "0.1.0"

environment.prepare()  # before anything imports JAX

Config = Any  # an ml_collections.ConfigDict, whose fields a type checker cannot know
