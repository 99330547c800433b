"""What `launch.benchmark` is made of: its cells, and one file for each question."""
