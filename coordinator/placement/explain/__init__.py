"""An assignment as a plan that explains itself, and can be replayed."""
