"""Figures and their uncertainty: numpy, SciPy and scikit-learn alone."""
