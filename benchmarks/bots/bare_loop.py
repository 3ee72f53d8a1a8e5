"""
The floor: media messages are sent back as they came, on a bare uvloop socket, without any WebSocket library.

    python bare_loop.py PORT
"""

import asyncio
import base64
import hashlib
import re
import struct
import sys

import uvloop

KEY = re.compile(rb"sec-websocket-key: *([^\r]+)", re.IGNORECASE)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer, self.upgraded, self.stream = transport, b"", False, b""

    def data_received(self, data):
        data = self.buffer + data
        if not self.upgraded:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            accept = base64.b64encode(
                hashlib.sha1(KEY.search(head)[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            )
            answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            self.transport.write(answer + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            self.upgraded = True
        at, out = 0, []
        while len(data) - at >= 2:
            size, body = data[at + 1] & 127, at + 2
            if size == 126:
                (size,), body = struct.unpack_from("!H", data, body), body + 2
            if len(data) < body + 4 + size:
                break
            # The callers' mask is zero.
            content = data[body + 4 : body + 4 + size]
            at = body + 4 + size
            if b'"payload"' in content:
                payload = content.partition(b'"payload":"')[2].partition(b'"')[0]
                answer = b'{"event":"media","streamSid":"' + self.stream + b'","media":{"payload":"' + payload + b'"}}'
                out.append(b"\x81\x7e" + struct.pack("!H", len(answer)) + answer)
        self.buffer = data[at:]
        if out:
            self.transport.write(b"".join(out))


async def main(port):
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
