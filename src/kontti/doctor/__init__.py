"""Holding what is kept against what it should be, and mending it."""
