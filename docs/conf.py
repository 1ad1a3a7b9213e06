"""How Sphinx builds the site: `nox -s docs`.

Two extensions of our own are in `_ext/`: one makes pages of the tutorials, the other reads the
package's docstrings and finds public names that no page documents.
"""

import os
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

# The kernels that run the tutorials and the gallery inherit these. Long tutorials are shorter then.
os.environ["VERNAL_QUICK"] = "1"
os.environ["IPYTHONDIR"] = str(DOCS / "_ext" / "ipython")
os.environ.pop("MPLBACKEND", None)  # pictures appear in the page

project = "Vernal"
author = "The Vernal developers"
release = metadata.version("vernal")
project_copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "tutorial_pages",
    "reference",
]
exclude_patterns = ["_ext", "_build", "conf.py", "make_pictures.py", "coming_from/programs"]

# ----- pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # a notebook's widgets are left out

# ----- cells
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = False  # beside what a tutorial reads
nb_execution_timeout = 600
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_render_error_lexer = "text"  # messages, without tracebacks
nb_code_prompt_show = "Show the answer"
nb_code_prompt_hide = "Hide the answer"

# ----- the reference
autoclass_content = "both"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"
# Defaults that are functions would be listed as methods.
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "exclude-members": "trainable",
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# ----- the look; nothing comes from a network
html_theme = "sphinx_book_theme"
html_title = "Vernal"
html_logo = "_static/vernal.svg"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_context = {"default_mode": "auto"}
html_css_files = ["custom.css"]
html_show_search_summary = False  # browsers refuse to fetch pages from the file system
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_issues_button": False,
    "use_repository_button": False,
    "use_source_button": False,
    "article_header_end": ["article-header-buttons"],
}
pygments_style = "friendly"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
