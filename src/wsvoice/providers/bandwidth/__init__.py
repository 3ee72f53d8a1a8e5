"""
Bandwidth: Programmable Voice, whose documents are BXML and whose webhooks carry a password.

Documents and stream messages: https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/
Webhooks: https://dev.bandwidth.com/docs/voice/webhooks
"""
