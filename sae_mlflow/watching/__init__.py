"""Trainings that are under way, as the store tells of them: from this machine or another."""
