"""What holds for every method: a table with an entry a method, and each property tested once, over all of them.

A new method costs an entry in table.py. Its own test file holds parity and facts alone.
"""
