"""Masks that are given: opened, copied to the keyframes, applied to a stack."""
