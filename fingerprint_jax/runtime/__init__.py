"""Machines, processes, signals, files and the command line; knows nothing of images or networks."""
