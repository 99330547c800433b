"""Writes the golden configs anew."""

from tests import golden
from tests.conftest import CONFIGS

golden.CONFIGS.write_text(golden.text(CONFIGS))
