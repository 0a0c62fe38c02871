"""The auth service: users, passwords, roles, refresh tokens, signing keys and service credentials."""
