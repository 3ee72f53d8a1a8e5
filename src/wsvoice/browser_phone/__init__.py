"""
``wsvoice phone``: a page on this machine that is a telephone, whose calls go through the simulated carrier.

The page's microphone is the caller of :func:`wsvoice.dial.caller.dial`: the same webhook, signature, answer, encoding
and pace as in a test call. Only this machine reaches the page, and only whoever has its address.
"""
