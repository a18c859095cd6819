"""``negpo train METHOD``: a recipe and flags in, a trained checkpoint out."""
