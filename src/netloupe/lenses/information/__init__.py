"""What does it carry?"""
