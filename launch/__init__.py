"""Many runs: `sweep` lists them, `local`, `slurm` or `kubernetes` run them, `collect` makes a table; `table` compares systems."""

import fingerprint_jax  # noqa: F401 - before JAX, see runtime/environment.py
