"""Runs and conversions: from an opened stack to finished pyramids."""
