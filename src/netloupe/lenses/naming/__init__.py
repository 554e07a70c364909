"""What does a unit mean?"""
