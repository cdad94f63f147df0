"""`--mode=report`: a workdir as one page for a browser, see `write`."""
