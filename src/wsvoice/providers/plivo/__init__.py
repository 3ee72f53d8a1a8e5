"""
Plivo: webhooks, Plivo XML and audio streaming.

Webhooks: https://www.plivo.com/docs/voice/concepts/callbacks
XML: https://docs.plivo.com/docs/voice/xml/audiostream
Stream messages: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference
Signatures: https://plivo.com/docs/voice/concepts/signature-validation
"""
