"""netloupe"""
