"""What shape is it: neural collapse, and the model of why features only almost collapse."""
