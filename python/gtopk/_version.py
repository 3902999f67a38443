"""The package's version; the library's is checked against it when it is loaded."""

__version__ = "0.1.0"
