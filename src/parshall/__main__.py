"""`python -m parshall` is the command `parshall`."""

from parshall.cli import main

if __name__ == "__main__":
    main()
