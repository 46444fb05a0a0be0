"""``python -m potkit`` is the command ``potkit``. Before Ctrl-C is met, nothing is imported."""

import sys


def _pressed(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind ``error``: extension modules turn it into an ImportError."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Run the command; Ctrl-C, imports included, ends it with one line and exit code 130."""
    try:
        from .cli.main import main as command

        command()
    except (KeyboardInterrupt, ImportError) as error:
        if not _pressed(error):
            raise
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
