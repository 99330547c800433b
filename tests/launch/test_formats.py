"""What tables print: names from outside are text and no markup."""

from launch import formats


def test_names_from_outside_are_no_links():
    assert formats.escape("![x](http://a)") == "!\\[x](http://a)"


def test_what_is_none_is_an_empty_cell():
    assert (formats.number(0.125), formats.number(None)) == ("0.1250", "")
    assert (formats.interval(0.1, 0.25), formats.interval(None, 0.2)) == ("0.1000 to 0.2500", "")
