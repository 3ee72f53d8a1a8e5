"""
Telnyx: webhooks of TeXML and of Call Control, their answers, and media streaming.

A number is served by a TeXML application, whose webhook is answered with a document, or by a Call Control one, whose
events are acknowledged and answered with requests to the API. The stream is the same.

TeXML webhooks: https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
TeXML: https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
Call Control: https://developers.telnyx.com/api-reference/call-commands/answer-call
Stream messages: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
Signatures: https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
"""
