"""`python -m statten.cli` does what `statten` does."""

from statten.cli import main

if __name__ == "__main__":
    main()
