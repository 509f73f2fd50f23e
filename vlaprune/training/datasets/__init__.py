"""Published demonstrations of LIBERO, read into the arrays that our own recordings have."""
