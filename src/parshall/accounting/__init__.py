"""The accounting service: accounts, grants, reservations, transfers and prices."""
