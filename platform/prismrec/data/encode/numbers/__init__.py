"""From raw numbers to levels and rows of tables: arithmetic shared by the reader and by serving."""
