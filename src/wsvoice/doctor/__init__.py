"""``wsvoice doctor``: what stands between a bot and its telephone calls, each with what mends it."""
