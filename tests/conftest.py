"""Settings of every test session."""

from hypothesis import settings

# No deadline: a slow machine is no fault of the code, and no test states a time. The blob replays a failure elsewhere.
settings.register_profile("parshall", deadline=None, print_blob=True)
settings.load_profile("parshall")
