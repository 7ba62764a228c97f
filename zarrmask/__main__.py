"""`python -m zarrmask`."""

from zarrmask.cli import main

if __name__ == "__main__":
    main()
