"""Can we change what it does?"""
