"""Detection: rules as data, and the pure functions that judge a closed step by them. Knows no storage and no clock."""
