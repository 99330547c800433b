"""Finds the fingerprints that real medical images leave in synthetic ones."""

from typing import Any

Config = Any  # an ml_collections.ConfigDict, whose fields a type checker cannot know
