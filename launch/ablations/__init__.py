"""One file is one ablation: `sweep()` returns what each run overrides."""
