"""Mask a scroll out of a micro-CT stack."""
