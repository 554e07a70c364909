"""Lenses: one folder per question, each method a plain function from activations to a finding."""
