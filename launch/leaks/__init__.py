"""What `launch.benchmark` is made of: the images, the generators, and one file for each question."""
