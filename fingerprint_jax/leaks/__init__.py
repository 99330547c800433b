"""Generators that are trained here, so that it is known what they leak: the real images, the training, and what each knows."""
