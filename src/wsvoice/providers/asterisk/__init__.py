"""
Asterisk, which is no company but one's own telephone exchange: its ``chan_websocket`` dials a stream at once.

There is no webhook and no signature. An extension of the dial plan leads to the stream's address, which
``websocket_client.conf`` names; credentials there are all that tells Asterisk from a stranger.

Protocol: https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/
Where its page and Asterisk 22.10 differ, this follows Asterisk: https://github.com/asterisk/asterisk/blob/22/channels/chan_websocket.c
"""
