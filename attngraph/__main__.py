"""`python -m attngraph`: the command line."""

from attngraph.cli import main

if __name__ == "__main__":
    main()
