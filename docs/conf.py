"""Sphinx's configuration: `make docs` builds the site into build/docs. Nothing is fetched from a network."""

import sys
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import lstmkern

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # Sphinx requires it on Python 3.10

about = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = about["name"]
author = "The lstmkern developers"
copyright = author
release = version = lstmkern.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax as files of the site
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",  # each page's first sentences as its description
]
root_doc = "index"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]

# MyST: a heading has the anchor that GitHub gives it, so that links work in both places.
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4

# Docstrings are Google style with RST inside. Types come from the annotations.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

# Every reference must resolve, except to other projects: their inventories would have to be fetched.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|numpy|matplotlib|rich|tokenizers|collections|pathlib|typing|types)\..*"),
    (
        "py:.*",
        r"(Tensor|PackedSequence|Module|Path|Any|Callable|Iterator|Sequence|Console|RNNClass|State|Tokenizer|optional)",
    ),
]

# HTML.
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {}
repository = about.get("urls", {}).get("Source")
if repository:
    html_theme_options |= {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
ogp_site_url = ""
ogp_social_cards = {"enable": False}


def setup(app):
    """Shows one signature per function: overloads tell a type checker what the list of parameters tells a reader."""
    analyze = ModuleAnalyzer.analyze

    def analyze_without_overloads(self):
        analyze(self)
        self.overloads.clear()

    ModuleAnalyzer.analyze = analyze_without_overloads
