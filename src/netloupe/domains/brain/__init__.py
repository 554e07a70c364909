"""Recordings of brains: readouts from feature maps to voxels, how they are fitted, and loaders of neural data."""
