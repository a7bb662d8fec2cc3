"""One WebSocket: bytes in, bytes out, and one named end. The only place with what is private to aiohttp."""
