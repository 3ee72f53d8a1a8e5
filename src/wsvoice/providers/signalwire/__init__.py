"""
SignalWire: the compatibility API, which speaks Twilio's dialect with ids, signatures and codecs of its own.

Documents and stream messages: https://developer.signalwire.com/compatibility-api/cxml/voice/stream
Signatures: https://github.com/signalwire/signalwire-python/blob/master/signalwire/request_validator.py
"""
