"""Calls that were traced, placed again: the same caller, today's bot, and what is different."""
