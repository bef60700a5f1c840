"""The command as `python -m prismrec.cli`, for where scripts are not on the path."""

from prismrec.cli.main import main

main()
