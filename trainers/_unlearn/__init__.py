"""Unlearning: forget and retain rows, their log-probs, and the scale of each term."""
