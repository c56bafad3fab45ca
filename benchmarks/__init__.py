"""Time and memory of the estimators, beside what else a user could pick: `make bench`."""
