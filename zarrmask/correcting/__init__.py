"""Corrections of a finished run: what they lay over its masks, and which bricks they change."""
