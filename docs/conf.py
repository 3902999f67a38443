"""Settings of Sphinx. `make docs` builds the pages; requirements/docs.txt pins what it takes."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
sys.path.insert(0, str(ROOT / "python"))

project = "gtopk"
author = "the gtopk authors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
release = re.search(r'^__version__ = "(.+)"$', (ROOT / "python/gtopk/_version.py").read_text(), flags=re.MULTILINE)[1]
version = release

extensions = ["c_header", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gtopk {release}"
html_copy_source = False

# Markdown: headings can be linked to, as on GitHub.
myst_heading_anchors = 3

# Docstrings are in NumPy's style; names in single backticks are links where they are known.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
