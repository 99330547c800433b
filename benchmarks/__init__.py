"""Speed of parts of the system, beside what a user would take instead."""

import fingerprint_jax  # noqa: F401 - before JAX, see runtime/environment.py
