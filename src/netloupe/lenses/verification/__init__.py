"""What can be guaranteed?"""
