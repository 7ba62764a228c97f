"""What a run will take, worked out before a pixel is read."""
