"""Storage: what the service knows, in one SQL database and one directory of token segments.

`database` opens it, `schema` says what is in it, and one module per noun reads and writes it. The functions take the
database first and keep nothing between calls, so any number of replicas may share one database.
"""
