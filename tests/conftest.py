"""Property tests draw the same examples every time: a run of the suite says something of the change, not of the day."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
