"""
``wsvoice deploy``: the files with which others run the bot. Pure: texts are rendered, and nothing is read or written;
of ``config`` only constants are used.

The numbers in them are worked out in one place, :mod:`wsvoice.deploy.sizing`, and the bot's command line in another,
:mod:`wsvoice.deploy.command`.
"""

from __future__ import annotations
