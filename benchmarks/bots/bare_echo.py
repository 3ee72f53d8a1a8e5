"""
The floor: a WebSocket server that sends every media message back as it came, without any pipeline.

    python bare_echo.py PORT
"""

import asyncio
import json
import sys

from websockets.asyncio.server import ServerConnection, serve


async def echo(socket: ServerConnection) -> None:
    stream_id = ""
    async for text in socket:
        message = json.loads(text)
        if message["event"] == "start":
            stream_id = message["streamSid"]
        elif message["event"] == "media":
            media = {"payload": message["media"]["payload"]}
            await socket.send(json.dumps({"event": "media", "streamSid": stream_id, "media": media}))


async def main(port: int) -> None:
    async with serve(echo, "localhost", port, compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
