"""Asterisk's facts for both ends."""

from __future__ import annotations

from typing import ClassVar

from wsvoice.providers.base import Company


class AsteriskCompany(Company):
    """Asterisk, which announces nothing and signs nothing, and says a password if it is given one."""

    name: ClassVar[str] = "asterisk"
    title: ClassVar[str] = "Asterisk"
    #: `username` and `password` of ``websocket_client.conf``, which the upgrade carries instead of a stream token:
    #: https://docs.asterisk.org/Latest_API/API_Documentation/Module_Configuration/res_websocket_client/
    credential_names: ClassVar[tuple[str, ...]] = ("ASTERISK_PASSWORD", "ASTERISK_USERNAME")
    signs: ClassVar[bool] = False
    has_webhook: ClassVar[bool] = False
    subprotocol: ClassVar[str] = "media"
    #: 900 frames, and 800.
    pauses_at_s: ClassVar[tuple[float, float] | None] = (18.0, 16.0)

    @property
    def username(self) -> str:
        """The user name that goes with the password."""
        return self.credential("ASTERISK_USERNAME") or "wsvoice"
