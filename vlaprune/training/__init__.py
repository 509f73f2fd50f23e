"""Training: demonstrations, behaviour cloning, fine-tuning with a learned method."""
