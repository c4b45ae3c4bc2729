"""Measurements: what the method costs (speed) and what it gains (alignment)."""
