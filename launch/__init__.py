"""Many runs: `sweep` lists them, `local`, `slurm` or `kubernetes` run them, `collect` makes a table; `table` compares systems."""
