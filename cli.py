"""Runs the command line from a checkout: `python cli.py extract ...`."""

from featcache.cli.app import main

if __name__ == "__main__":
    main()
