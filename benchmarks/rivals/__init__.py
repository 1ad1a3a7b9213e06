"""The rivals of the benchmark, one a module.

Each has `prepare(workload)`, which returns `run()`, which trains from the beginning and waits for
the end, and `outputs(x)`, which applies what the last run trained.
"""
