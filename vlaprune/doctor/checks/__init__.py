"""The checks of vlaprune-doctor. Each is a function that answers one finding and changes nothing."""
