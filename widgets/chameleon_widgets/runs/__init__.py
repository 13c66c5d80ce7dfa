"""Trainings: one as it goes on, and several compared."""
