"""``python -m potkit`` is the command ``potkit``."""

from .cli.main import main

if __name__ == "__main__":
    main()
