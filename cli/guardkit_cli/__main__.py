"""`python -m guardkit_cli` is `guard`."""

from guardkit_cli import main

if __name__ == "__main__":
    main()
