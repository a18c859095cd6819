"""``python -m negpo``."""

from negpo.cli import main

if __name__ == "__main__":
    main()
