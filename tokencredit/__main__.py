"""`python -m tokencredit` is the command line."""

from tokencredit.cli import app

app()
