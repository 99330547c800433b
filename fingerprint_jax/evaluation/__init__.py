"""Predictions to figures: labels, scores, and which images a run has read."""
