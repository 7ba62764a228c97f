"""Folders of numbered images that zarrmask writes: slices of its outputs, proxies of a stack."""
