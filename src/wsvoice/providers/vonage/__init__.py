"""
Vonage's Voice API: signed webhooks, NCCO answers, and WebSockets with binary audio.

Webhooks: https://developer.vonage.com/en/voice/voice-api/webhook-reference
NCCO: https://developer.vonage.com/en/voice/voice-api/ncco-reference
WebSockets: https://developer.vonage.com/en/voice/voice-api/concepts/websockets
Signed webhooks: https://developer.vonage.com/en/getting-started/concepts/webhooks#decoding-signed-webhooks
"""
