"""``python -m wsvoice``."""

from wsvoice.cli.main import main

if __name__ == "__main__":
    main()
