"""
Twilio: webhooks, TwiML and Media Streams.

Webhooks: https://www.twilio.com/docs/voice/twiml#twilios-request-to-your-application
TwiML: https://www.twilio.com/docs/voice/twiml/stream
Stream messages: https://www.twilio.com/docs/voice/media-streams/websocket-messages
Signatures: https://www.twilio.com/docs/usage/security
"""
