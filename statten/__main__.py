"""`python -m statten` does what `statten` does."""

import sys

try:
    from statten.cli import main
except KeyboardInterrupt:  # before the command line could say what a signal does
    print("statten: stopped by Ctrl-C; nothing was begun that could be resumed", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    main()
