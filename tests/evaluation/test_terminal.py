import logging

import numpy as np
from rich.console import Console

from fingerprint_jax.evaluation.terminal import table
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.stats import metrics

NAME = "runs/\x1b[9A\x1b[2Kaccuracy 1.0\r"


def test_names_in_figures_and_in_the_log_are_no_orders_to_a_terminal(capsys):
    report = metrics.report(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1]), 2)
    Console(markup=False).print(table(NAME, report, None, {"transductive": [NAME], "in_sample": [NAME]}))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out and out.count(r"\x1b[9A\x1b[2Kaccuracy 1.0\r") == 3
    show_log()
    formatter = logging.getLogger("fingerprint_jax").handlers[0].formatter
    record = logging.LogRecord("fingerprint_jax", logging.INFO, "", 0, "%s\nis gone", (NAME,), None)
    assert formatter.format(record) == "runs/\\x1b[9A\\x1b[2Kaccuracy 1.0\nis gone"
