"""A check of a deployment from outside, through whatever stands in front of it."""
