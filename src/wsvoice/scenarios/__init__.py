"""Calls as tests: files ``NAME.call.toml`` that say what a caller does, and what is expected of the bot."""

#: How the name of a scenario's file ends.
SUFFIX = ".call.toml"
