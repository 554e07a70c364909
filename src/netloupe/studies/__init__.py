"""One module per paper, named by its slug: its claims, each measured against a bar and a control."""
