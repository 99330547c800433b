"""Many runs of one question: `sweep` lists them, `local` runs them, `collect` makes one table of them."""
