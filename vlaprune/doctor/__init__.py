"""vlaprune-doctor: what a run needs, what is missing, and what to do about it."""
