"""No config changes unnoticed."""

from tests import golden
from tests.conftest import CONFIGS


def test_every_config_is_as_it_was():
    before, now = golden.CONFIGS.read_text(), golden.text(CONFIGS)
    assert now == before, f"configs changed; {golden.RENEW}\n{golden.differences(before, now)}"


def test_a_change_is_shown_below_its_config():
    before = "a.py 0123\n  seed = 0\n"
    assert "-  seed = 0\n+  seed = 1" in golden.differences(before, before.replace("0\n", "1\n"))
