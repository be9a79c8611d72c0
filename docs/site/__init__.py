"""The documentation site: `python -m docs.site`, or `make docs`.

The pages in docs/ are written for GitHub as well as for the site. `pages` copies them into a folder and settles every
link, `reference` adds what is read from the code, Sphinx turns the folder into HTML, `llms` into text for programs.
"""
