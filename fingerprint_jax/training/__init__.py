"""Training a network, and computing with one that is trained."""
