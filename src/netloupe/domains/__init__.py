"""What single fields need beside the lenses: their data, their layouts, their models."""
