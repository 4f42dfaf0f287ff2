"""Runs an experiment that is described in a TOML file: extract, train or sweep, and report.

    [images]
    dataset = "digits"

    [[backbones]]
    backbone = "pixels"

    [grid]
    head = ["linear", "mlp:128,64"]

A table is one or two records of options, and its names are the fields of these, as in Python. `reading` makes the
records of a file; `running` calls the functions that the commands call. Each run stores such a file
(`runs.experiment_file`).
"""
