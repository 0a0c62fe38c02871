"""Composition: configuration, which services this process serves, the server and the sweeper."""
