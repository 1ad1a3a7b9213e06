"""How the site's kernels draw: sharp on every screen, and as large as the script says."""

c = get_config()  # IPython puts it there
c.InlineBackend.figure_formats = {"retina"}
c.InlineBackend.print_figure_kwargs = {"bbox_inches": None}
c.HistoryManager.enabled = False
