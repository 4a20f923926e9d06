import pytest

from mft_jax.report.text import clean, literal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("runs/[/] [bold]:smile: größe 漢", "runs/[/] [bold]:smile: größe 漢"),
        ("two\nlines\r\nand\u2028three", "two lines and three"),
        ("a\tb", "a b"),
        ("bell\x07 back\x08space null\x00 delete\x7f next\x84", "bell backspace null delete next"),
        ("\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1Hmoved", "red moved"),
        ("\x1b]0;title\x07named \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "named link"),
        ("\x9b31mred \x9d0;title\x9cnamed", "red named"),
        ("\x1bcreset \x1b(Bset \x1bPdevice\x1b\\ end\x1b", "reset set  end"),
        ("\x1b]never ended, but still read", "never ended, but still read"),
        ("file\u202egpj.exe \u2066x", "filegpj.exe x"),
        ("not \udcffUTF-8", "not \ufffdUTF-8"),
        (FileNotFoundError(2, "No such file", "[x]"), "[Errno 2] No such file: '[x]'"),
    ],
)
def test_foreign_text_is_one_harmless_line(text, shown):
    assert clean(text) == shown
    assert literal(text).plain == shown
    assert literal(text).spans == []
