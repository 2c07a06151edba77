"""The backend compiled by numba (extra `fast`): one pass over the tokens, every statistic of the summary in it.

`chunk` is the pass, `stages` its vectorised loops, `summarise` what Python does before and after. What it costs is
measured by `make bench-kernel`.
"""
