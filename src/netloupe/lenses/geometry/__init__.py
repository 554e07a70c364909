"""What shape is it: neural collapse, neural codes, alignment and abstraction, topology of distances."""
