"""A fleet and its site as a placement problem."""
