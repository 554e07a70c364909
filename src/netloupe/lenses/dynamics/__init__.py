"""How did its features arise?"""
