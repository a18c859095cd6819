"""Preference methods: preferred and dispreferred answers, their log-probs, pairs and lists."""
