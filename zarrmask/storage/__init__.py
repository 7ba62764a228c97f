"""Where files lie, and how they are written so that nothing is half written or lost."""
