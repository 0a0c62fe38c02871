"""The chat service: chat sessions, messages, streams with their log, models and providers."""
