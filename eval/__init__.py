"""Evaluation harnesses: TOFU first. Imported as ``negpo.eval``; each harness lives in its own module."""
