"""
Exotel: the Voicebot applet, its dynamic URL and its media stream.

There is no document language and no signature. A flow's Voicebot applet holds either the stream's own URL, or a
web address that Exotel asks for it.

Applet: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
Stream messages: https://developer.exotel.com/docs/agentstream/websocket-protocol
"""
