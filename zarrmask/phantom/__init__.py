"""Simulated scrolls with their truth, to try the programme on and to train the detector with."""

from zarrmask.phantom.random_slice import simulate
from zarrmask.phantom.volume import Phantom, write_phantom

__all__ = ["Phantom", "simulate", "write_phantom"]
