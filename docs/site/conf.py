"""Sphinx's settings of the site; `make docs` builds it."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import reference  # noqa: E402
import tf_deform  # noqa: E402

project = "tf_deform"
author = "The tf_deform authors"
copyright = author
release = version = tf_deform.__version__

extensions = [
    "myst_parser",
    "sphinx_codeautolink",
    "sphinx_copybutton",
    "sphinx_design",
    "breaks",
    "guide_pages",
    "links",
    "offline",
    "reference",
    "repository",
]
exclude_patterns = ["site", "guides/outputs"]
root_doc = "index"
nitpicky = True
default_role = "literal"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
# Pages are read on their own too, where a level of heading may be skipped for its size.
suppress_warnings = ["myst.header"]

smartquotes = False
add_module_names = True
toc_object_entries_show_parents = "hide"

codeautolink_global_preface = "import keras\nimport tensorflow as tf\nimport tf_deform as tfd"
codeautolink_concat_default = True
# Where classes and functions are defined, and under which names they stand in the reference.
codeautolink_inventory_map = {
    f"{thing.__module__}.{thing.__qualname__}": entry
    for entry, thing in ((entry, reference.member(entry)) for entry in reference.ENTRIES)
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "tf_deform"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/logo.svg"
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = False
html_use_index = False
html_theme_options = {
    "logo": {
        "text": "tf_deform",
        "image_light": "static/logo.svg",
        "image_dark": "static/logo.svg",
    },
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "layers": [], "support": []},
    "footer_start": ["copyright"],
    "footer_center": [],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "installing": [], "layers": []}
