"""Neural-network parts; nothing here imports the rest of vlaprune."""
