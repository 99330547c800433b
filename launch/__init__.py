"""Many runs: `sweep` lists those of one question, `local` runs them, `collect` makes a table of them; `table` compares systems."""
