"""
Workers: processes that run the bots' sessions, for a front that answers everything else.

With ``--workers`` or ``--reload`` the process that was started is the *front*. It listens, answers webhooks and keeps
every place, token and count; it never loads the bot. A WebSocket that may have its session is passed on, as an open
connection, to a worker. So a bot cannot hold up a webhook, a worker that dies takes its own calls along and no others,
and a reload is a new worker beside the old one, which exits with its last call.

Workers are forked from the *template*, a process that has imported what every worker needs, and nothing of the
project's: a worker is there in a moment, and shares that memory.
"""
