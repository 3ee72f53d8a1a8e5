"""A stranger's requests over HTTP, as a library makes them."""

from __future__ import annotations

import httpx

#: Like the functions of ``httpx``, with a new connection for each request, but those make a client for each as well,
#: and each client reads the machine's certificates: more work than all else that most of these tests do.
web = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
