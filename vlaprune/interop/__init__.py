"""Other harnesses: their messages, their records."""
