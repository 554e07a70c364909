"""Which directions are features?"""
