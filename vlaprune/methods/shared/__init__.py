"""Functions that several methods share: selecting tokens, scoring them, comparing image patches."""
