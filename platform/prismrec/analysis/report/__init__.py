"""The report that shows what was found: chapters of plots, and the page that holds them."""
