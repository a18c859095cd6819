"""Rows in, token ids out: reading data files, question-answer templates, padding, and safe writing."""
