"""Evaluation: episodes into a journal, films, progress, sinks."""
