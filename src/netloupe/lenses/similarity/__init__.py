"""Do two networks (or two sites) see alike?"""
