"""Faults made on purpose, on real processes, servers and files, and what is left then.

`reliability.py` counts them; the tests hold each alone.
"""
