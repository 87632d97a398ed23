"""``python -m anyvla`` is ``anyvla``."""

from anyvla.cli import app

if __name__ == "__main__":
    app()
