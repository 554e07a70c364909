"""How active is it?"""
