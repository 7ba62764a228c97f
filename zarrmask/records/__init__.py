"""What an output says of itself: whose it is, what of it is done, what was damaged."""
