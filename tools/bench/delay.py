"""``python -m tools.bench.delay PORT TARGET``: a TCP proxy that delivers each byte 25 ms later."""

import asyncio
import sys
from typing import Final

_DELAY_SECONDS: Final = 0.025
_PIECE_BYTES: Final = 64 * 1024


async def _late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    try:
        while piece := await reader.read(_PIECE_BYTES):
            loop.call_later(_DELAY_SECONDS, writer.write, piece)
            await writer.drain()
    except ConnectionError:
        pass  # the other direction closes both
    finally:
        loop.call_later(2 * _DELAY_SECONDS, writer.close)


async def _serve(port: int, target: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_late(reader, back), _late(there, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
