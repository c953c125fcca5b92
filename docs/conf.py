"""Configuration of the documentation site: `make docs` writes it to build/docs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sphinx.ext.napoleon.docstring import GoogleDocstring

from pixmix import __version__

project = "pixmix"
author = "The PixMix toolkit authors"
copyright = "2026, The PixMix toolkit authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns: list[str] = []
highlight_language = "text"
default_role = "code"

html_theme = "furo"
html_title = f"pixmix {release}"
html_static_path = ["_static"]
html_css_files = ["pixmix.css"]
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

OTHERS = ("collections", "numpy", "np", "pathlib", "PIL", "torch", "types", "webdataset")
nitpick_ignore_regex = [
    # 2026-11: types of other packages. Links to their sites would need a network to build.
    ("py:.*", rf"({'|'.join(OTHERS)})(\..*)?"),
]


def _prose_of_returns(docstring: GoogleDocstring, **_: bool) -> list[tuple[str, str, list[str]]]:
    return [("", "", docstring._dedent(docstring._consume_to_next_section()))]


def _prose_of_attribute(docstring: GoogleDocstring) -> tuple[str, list[str]]:
    return "", docstring._dedent(docstring._consume_to_end())


# In these two sections napoleon parses the text before a colon as a type. Here it is prose, because
# types are in the signatures.
GoogleDocstring._consume_returns_section = _prose_of_returns
GoogleDocstring._consume_inline_attribute = _prose_of_attribute
