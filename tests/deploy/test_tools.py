"""Whether tests that lack a program are skipped, or fail."""

from __future__ import annotations

import pytest

from tests.deploy import tools


@pytest.mark.parametrize("are_required", [False, True])
def test_a_missing_program_is_no_pass_where_it_has_to_be_there(
    monkeypatch: pytest.MonkeyPatch, are_required: bool
) -> None:
    monkeypatch.setattr(tools, "ARE_REQUIRED", are_required)
    with pytest.raises(pytest.fail.Exception if are_required else pytest.skip.Exception, match="is not installed"):
        tools.tool("no-such-program")
