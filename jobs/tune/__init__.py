"""`prismrec tune`: a search over keys of a recipe."""
