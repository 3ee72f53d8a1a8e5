"""What a stranger, or a bot that behaves badly, may try against a real server process; over loopback, and bounded."""
