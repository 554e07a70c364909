"""Which inputs and paths decide?"""
