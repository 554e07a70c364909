"""Networks that studies and users train, and the recipes that make them."""
