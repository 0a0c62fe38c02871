"""`parshall signing-keys`: the keys that sign access tokens."""

from parshall.cli.terminal import group, local, say

app = group("The keys that sign access tokens.")


@app.command()
def rotate() -> None:
    """Make a new signing key; tokens signed with the old one stay valid until they expire.

    Example: parshall signing-keys rotate
    """
    local(lambda parts: parts.auth.rotate())
    say("A new signing key is made; running servers sign with it in about a minute.")
