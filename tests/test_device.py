"""The nouns' own promises: every error says what to do; URIs parse to what they name, or are refused with the forms."""

from __future__ import annotations

import pytest

from devrt import device
from devrt.device import URI, DevrtError, InvalidArgument, parse_uri

ERRORS = [e for e in vars(device).values() if isinstance(e, type) and issubclass(e, DevrtError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_has_a_code_and_a_remedy(error: type[DevrtError]) -> None:
    e = error("something broke", evidence="errno 5")
    assert e.remedy and e.code
    assert str(e) == f"something broke [errno 5] -> {e.remedy}"
    assert error("x", remedy="do y").remedy == "do y"


def test_error_classes_and_codes_are_distinct() -> None:
    assert len({e.code for e in ERRORS}) == len(ERRORS) == 11


@pytest.mark.parametrize(("text", "uri"), [
    ("cpu", URI("cpu")), ("amd:0", URI("amd")), ("nvidia:12", URI("nvidia", 12)), ("qualcomm:1", URI("qualcomm", 1)),
    ("virtual:amd/gfx1100", URI("amd", 0, True, "gfx1100")), ("virtual:nvidia/sm_90", URI("nvidia", 0, True, "sm_90")),
    ("virtual:amd/4xgfx942:3", URI("amd", 3, True, "4xgfx942")),
    ("virtual:amd/2xgfx1100:1?hang@2&seed=7", URI("amd", 1, True, "2xgfx1100", "hang@2&seed=7")),
])
def test_uris(text: str, uri: URI) -> None:
    assert parse_uri(text) == uri
    assert parse_uri(str(uri)) == uri


@pytest.mark.parametrize("text", ["", "gpu", "cpu:1", "amd:", "amd:-1", "amd:x", "virtual:cpu/x", "virtual:amd/", "virtual:amd",
                                  "virtual:amd/gfx1100?", "amd:0?hang@1",
                                  "amd:0 ", "AMD:0", None, 3])
def test_bad_uris(text: object) -> None:
    with pytest.raises(InvalidArgument, match="names no device") as e:
        parse_uri(text)  # type: ignore[arg-type]
    assert "virtual:VENDOR/TOPOLOGY" in e.value.remedy
